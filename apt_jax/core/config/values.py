"""One value against one key: type, range, and the text form used on the command line."""

from __future__ import annotations

import ast
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from apt_jax.core.config.keys import Key
from apt_jax.core.config.options import FrozenOptions
from apt_jax.core.errors import did_you_mean

LARGEST_INTEGER = 2**63 - 1
_DEEPEST_OPTIONS = 32
# The number forms of YAML 1.2 and JSON; Python's own also take `1_000` and surrounding blanks.
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "none": None, "null": None}


class BadValue(ValueError):
    """A value does not fit its key; the text completes `<key>: `."""


def check(value: Any, key: Key) -> Any:
    """Returns `value` in the key's canonical type.

    Integral floats are integers (`1e3`), integers are numbers, a single string is a list of one;
    a bool is never a number and a string is never parsed.

    Raises:
      BadValue: wrong type, out of range, or not one of the choices.
    """
    if value is None and key.optional:
        return None
    if key.kind == "bool":
        if not isinstance(value, bool):
            raise _expected(key, value)
        return value
    if key.kind in ("int", "float"):
        return _number(value, key)
    if key.kind == "choice":
        if value not in key.choices:
            raise _expected(key, value, did_you_mean(value, key.choices) if isinstance(value, str) else "")
        return value
    if key.kind == "str":
        return _string(value, key)
    if key.kind == "strings":
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) and item for item in items):
            raise _expected(key, value)
        return tuple(items)
    if not isinstance(value, Mapping):
        raise _expected(key, value, ", e.g. {'name': 1}")
    _check_plain(value, 0)
    return FrozenOptions(value)


def parse(text: str, key: Key) -> Any:
    """Reads the text after `--config.<key>=`, by the key's type; `check` still judges the result."""
    if key.optional and text.lower() in ("none", "null"):
        return None
    if key.kind in ("str", "choice"):
        return text
    if key.kind in ("int", "float", "bool"):
        return parse_scalar(text)
    if key.kind == "options":
        return _literal(text, "a mapping such as {'a': 1}")
    if text.startswith(("(", "[")):
        return _literal(text, "a list such as ['a', 'b']")
    # A comma before a blank is punctuation: a prompt such as "Hello, world" stays whole.
    return tuple(re.split(r",(?!\s)", text)) if text else ()


def parse_free(text: str) -> Any:
    """Reads the text of one free-form option: a number, true, false, none, a literal, or else a string."""
    return _literal(text, "a list or mapping") if text.startswith(("(", "[", "{")) else parse_scalar(text)


def parse_scalar(text: str) -> Any:
    """Reads a plain word as YAML 1.2 does: number, true, false, none; anything else stays a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        # Python refuses to parse thousands of digits; such a number is out of every range anyway.
        return int(text) if len(text) <= 4000 else math.inf
    return float(text) if _FLOAT.fullmatch(text) else text


def show(value: Any) -> str:
    """Returns a short one-line form of a value for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: Any, key: Key) -> int | float:
    if not _is_finite_number(value):
        raise _expected(key, value)
    if key.kind == "int":
        number = int(value)
        if value != number or abs(number) > LARGEST_INTEGER:
            raise _expected(key, value)
    else:
        number = float(value)
    bounds = key.range
    inside = (
        (bounds.min is None or number >= bounds.min)
        and (bounds.above is None or number > bounds.above)
        and (bounds.max is None or number <= bounds.max)
        and (bounds.below is None or number < bounds.below)
    )
    if not inside:
        raise _expected(key, value)
    return number


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _string(value: Any, key: Key) -> str:
    if isinstance(value, str) and (value or not key.default):
        return value
    hint = ""
    if isinstance(value, numbers.Real):
        hint = " (put it in quotes)"
    elif value == "":
        hint = " (it may not be empty)"
    raise _expected(key, value, hint)


def _expected(key: Key, value: Any, hint: str = "") -> BadValue:
    article = "an" if key.kind == "int" else "" if key.kind in ("bool", "choice") else "a"
    return BadValue(f"expected {article} {key.type_name}, got {show(value)}{hint}".replace("  ", " "))


def _literal(text: str, wanted: str) -> Any:
    """Reads a JSON or Python literal; nothing is evaluated."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    raise BadValue(f"expected {wanted} as JSON or as a Python literal, got {show(text)}")


def _check_plain(value: Any, depth: int) -> None:
    if depth > _DEEPEST_OPTIONS:
        raise BadValue(f"nested deeper than {_DEEPEST_OPTIONS} levels")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise BadValue(f"names inside must be strings, got {show(name)}")
            _check_plain(item, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            _check_plain(item, depth + 1)
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise BadValue(f"only plain data may be inside (numbers, strings, lists …), got {show(value)}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadValue(f"numbers inside must be finite, got {show(value)}")
