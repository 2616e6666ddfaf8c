"""A configuration in the making: values with their origins, before they are judged together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apt_jax.core.config.keys import all_keys, sections
from apt_jax.core.config.schema import Config
from apt_jax.core.config.validate import unknown_key, validate
from apt_jax.core.config.values import BadValue, parse, parse_free
from apt_jax.core.errors import ConfigError


@dataclass
class Draft:
    """Values read so far.

    Attributes:
      source: where the values come from, as a person would name it.
      values: nested plain data, only the keys that were given.
      places: a nearer origin of single keys, e.g. {'training.seed': 'run.yaml:12'}.
      notes: keys of a foreign profile that do not apply here, each with the reason.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def get(self, path: str) -> Any:
        """Returns the value at a dotted path, or None."""
        node: Any = self.values
        for part in path.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return None
            node = node[part]
        return node

    def put(self, path: str, value: Any, place: str) -> None:
        """Sets the value at a dotted path and remembers where it came from.

        Raises:
          ConfigError: a value on the way is not a mapping.
        """
        *parents, name = path.split(".")
        node = self.values
        for depth, part in enumerate(parents):
            child = node.setdefault(part, {})
            if child is None:
                child = node[part] = {}
            if not isinstance(child, dict):
                above = ".".join(parents[: depth + 1])
                raise ConfigError(f"{place}: {path}: '{above}' is {child!r}, it has nothing inside")
            node = child
        node[name] = value
        self.places[path] = place

    def override(self, overrides: Mapping[str, Any] | Iterable[str], prefix: str = "") -> None:
        """Applies `{'training.seed': 1}` or `['training.seed=1']`; texts are read by the key's type.

        Args:
          overrides: dotted keys with values, or `key=value` texts.
          prefix: how the user wrote keys, for messages: `--config.` on the command line.

        Raises:
          ConfigError: an unknown key, or text that cannot be read.
        """
        if isinstance(overrides, Mapping):
            for path, value in overrides.items():
                self._option(path, f"{prefix}{path}")
                self.put(path, value, f"{prefix}{path}")
            return
        for text in overrides:
            path, equals, value = text.partition("=")
            place = f"{prefix}{text}"
            if not equals:
                raise ConfigError(f"{place}: expected key=value, e.g. training.batch_size=8")
            key = self._option(path, place)
            try:
                read = parse(value, all_keys()[path]) if key == path else parse_free(value)
            except BadValue as bad:
                raise ConfigError(f"{place}: {path}: {bad}") from None
            self.put(path, read, place)

    def validated(self) -> Config:
        """Returns the frozen configuration; raises ConfigError for the first mistake."""
        return validate(self.values, source=self.source, places=self.places)

    @staticmethod
    def _option(path: str, place: str) -> str:
        """Returns the schema key that `path` is, or lies inside of (free-form keys only)."""
        if path in all_keys():
            return path
        if path in sections():
            inside = ", ".join(sections()[path])
            raise ConfigError(f"{place}: '{path}' is a section; set one key in it: {inside}")
        parent = path.rpartition(".")[0]
        while parent:
            if parent in all_keys() and all_keys()[parent].kind == "options":
                return parent
            parent = parent.rpartition(".")[0]
        raise unknown_key(path, place)
