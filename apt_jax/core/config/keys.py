"""The list of all keys, read from the schema: path, type, range, default and comment of each."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from apt_jax.core.config.schema import Config, Range


@dataclass(frozen=True)
class Key:
    """One configuration key.

    Attributes:
      path: dotted, e.g. `training.batch_size`.
      kind: int, float, bool, str, choice, strings (a tuple of strings) or options (free-form mapping).
      optional: whether none is allowed.
      range: bounds of a number.
      choices: allowed words of a choice.
      default: the frozen default.
      comment: what the schema says about it.
    """

    path: str
    kind: Literal["int", "float", "bool", "str", "choice", "strings", "options"]
    optional: bool
    range: Range
    choices: tuple[str, ...]
    default: Any
    comment: str

    @property
    def type_name(self) -> str:
        """The type as a person reads it, e.g. `integer >= 1 or none`."""
        words = {
            "int": "integer",
            "float": "number",
            "bool": "true or false",
            "str": "string",
            "choice": "one of " + ", ".join(self.choices),
            "strings": "string or list of strings",
            "options": "mapping",
        }[self.kind]
        return words + _bounds(self.range) + (" or none" if self.optional else "")


def _bounds(range_: Range) -> str:
    signs = {"min": ">=", "above": ">", "max": "<=", "below": "<"}
    limits = ((sign, getattr(range_, name)) for name, sign in signs.items())
    parts = [f"{sign} {limit:g}" for sign, limit in limits if limit is not None]
    return (" " + " and ".join(parts)) if parts else ""


@functools.cache
def all_keys() -> Mapping[str, Key]:
    """Returns every key by dotted path, in schema order."""
    return types.MappingProxyType({key.path: key for key in _walk(Config, "")})


@functools.cache
def sections() -> Mapping[str, tuple[str, ...]]:
    """Returns the names directly inside each section; the root section is ''."""
    found: dict[str, list[str]] = {"": []}
    for path in all_keys():
        parts = path.split(".")
        for depth in range(len(parts)):
            names = found.setdefault(".".join(parts[:depth]), [])
            if parts[depth] not in names:
                names.append(parts[depth])
    return types.MappingProxyType({name: tuple(names) for name, names in found.items()})


def describe_keys() -> list[str]:
    """Returns one aligned line per key: path, type, default, comment."""
    rows = [(key.path, key.type_name, _show_default(key.default), key.comment) for key in all_keys().values()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [
        f"{path:{widths[0]}}  {kind:{widths[1]}}  {value:<10}  {comment}"
        for path, kind, value, comment in rows
    ]


def _show_default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else repr(value) if value == "" else str(value)


def _walk(section: type, prefix: str) -> list[Key]:
    hints = typing.get_type_hints(section, include_extras=True)
    comments = _comments(section)
    keys: list[Key] = []
    for field in dataclasses.fields(section):
        hint, path = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            keys += _walk(typing.cast(type, hint), path + ".")
            continue
        has_factory = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if has_factory else field.default  # type: ignore[misc]
        keys.append(_key(path, hint, default, comments.get(field.name, "")))
    return keys


def _key(path: str, hint: Any, default: Any, comment: str) -> Key:
    """Reads `int`, `Annotated[int, Range]`, `Literal`, `tuple[str, ...]`, `Mapping`, each maybe `| None`."""
    optional, bounds = False, Range()
    if typing.get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
        optional = True
    if typing.get_origin(hint) is Annotated:
        hint, bounds = typing.get_args(hint)
    choices: tuple[str, ...] = ()
    origin = typing.get_origin(hint)
    if origin is Literal:
        kind, choices = "choice", typing.get_args(hint)
    elif hint in (bool, int, float, str):
        kind = hint.__name__
    elif origin is tuple:
        kind = "strings"
    elif origin is not None and issubclass(origin, Mapping):
        kind = "options"
    else:
        raise TypeError(f"{path}: a schema key cannot be of type {hint}")
    return Key(path, typing.cast(Any, kind), optional, bounds, choices, default, comment)


def _comments(section: type) -> dict[str, str]:
    """Returns the end-of-line comment of each field of a section."""
    comments: dict[str, str] = {}
    name = ""
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(section)).readline):
        if token.type == tokenize.NEWLINE:
            name = ""
        elif token.type == tokenize.OP and token.string in "([{":
            depth += 1
        elif token.type == tokenize.OP and token.string in ")]}":
            depth -= 1
        elif token.type == tokenize.NAME and not name and depth == 0:
            name = token.string
        elif token.type == tokenize.COMMENT and name:
            comments[name] = token.string.lstrip("# ")
    return comments
