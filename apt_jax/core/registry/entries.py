"""What plugins registered: names, what they stand for, and whose they are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apt_jax.core.errors import AptError, PluginError, unknown_name
from apt_jax.core.registry.calling import cause, place

Target = Callable[..., Any] | str


@dataclass(frozen=True)
class Entry:
    """A registered name.

    Attributes:
      kind: what it is, in the singular: "architecture".
      name: as configurations use it.
      target: the factory, or "module:attribute", imported when first resolved.
      plugin: the plugin that gave it.
    """

    kind: str
    name: str
    target: Target
    plugin: str

    def load(self) -> Any:
        """The factory itself.

        Raises:
          PluginError: the module cannot be imported or lacks the attribute.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except AptError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plugin '{self.plugin}': {self.kind} '{self.name}' is '{self.target}', "
                f"which cannot be loaded: {cause(error)}"
            ) from error
        return found


class Registry(Mapping[str, Entry]):
    """The registered names of one kind, sorted; looking at them imports nothing."""

    def __init__(self, kind: str, entries: Mapping[str, Entry], absent: Sequence[str] = ()):
        """Args:
        kind: in the singular, for messages.
        entries: by name.
        absent: `name (reason)` of plugins that could not be loaded and may have given more.
        """
        self.kind = kind
        self._entries = dict(sorted(entries.items()))
        self._absent = tuple(absent)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self)})"

    def resolve(self, name: str, key: str = "") -> Any:
        """The factory called `name`; `key` is the setting that asks for it, for the message.

        Raises:
          PluginError: no such name; the line gives the nearest, all there are, and plugins not loaded.
        """
        if name not in self._entries:
            absent = f"; plugins not loaded: {', '.join(self._absent)}" if self._absent else ""
            where = f"{key}: " if key else ""
            raise PluginError(where + unknown_name(self.kind, name, self._entries) + absent)
        return self._entries[name].load()

    def make(self, name: str, /, *args: Any, key: str = "", **arguments: Any) -> Any:
        """What the factory called `name` returns for these arguments; `key` as in `resolve`.

        Raises:
          PluginError: no such name, or the factory failed with anything but an AptError of its own.
        """
        factory = self.resolve(name, key)
        try:
            return factory(*args, **arguments)
        except AptError:
            raise
        except Exception as error:
            owner = self._entries[name].plugin
            raise PluginError(
                f"plugin '{owner}': {self.kind} '{name}' failed: {cause(error)}{place(error, -1)}"
            ) from error


def singular(registry: str) -> str:
    """`attention_kernels` -> `attention kernel`."""
    return registry.removesuffix("es" if registry == "losses" else "s").replace("_", " ")


def read_targets(plugin: str, hook: str, given: Any) -> dict[str, Entry]:
    """Checks what a register hook returned.

    Raises:
      PluginError: it is no mapping of names to callables or "module:attribute".
    """
    if given is None:
        return {}
    kind = singular(hook.removeprefix("apt_"))
    if not isinstance(given, Mapping):
        raise PluginError(
            f"plugin '{plugin}': {hook} returned {type(given).__name__}; return a mapping "
            "{name: factory} or {name: 'module:attribute'}"
        )
    entries = {}
    for name, target in given.items():
        if not isinstance(name, str) or not name or any(c.isspace() or c in ",=:" for c in name):
            raise PluginError(
                f"plugin '{plugin}': {hook} gives the name {name!r}; "
                "a name is text without spaces, commas, colons and equal signs"
            )
        if not callable(target) and not (isinstance(target, str) and _is_path(target)):
            raise PluginError(
                f"plugin '{plugin}': {hook}: '{name}' is {target!r}; give a callable or 'module:attribute'"
            )
        entries[name] = Entry(kind, name, target, plugin)
    return entries


def _is_path(text: str) -> bool:
    module, colon, attribute = text.partition(":")
    parts = (*module.split("."), *attribute.split("."))
    return bool(colon) and all(part.isidentifier() for part in parts)
