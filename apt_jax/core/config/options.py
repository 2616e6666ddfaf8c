"""Free-form values of a configuration, made immutable and hashable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class FrozenOptions(Mapping[str, Any]):
    """An immutable mapping whose values are plain data, frozen all the way down.

    A config travels as a static attribute of modules and through pickle to worker processes, so
    unlike `types.MappingProxyType` this one hashes, pickles and copies. Lists become tuples.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items = {key: freeze(value) for key, value in (items or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenOptions, (thaw(self),)


def freeze(value: Any) -> Any:
    """Returns `value` with mappings as FrozenOptions and lists as tuples, recursively."""
    if isinstance(value, FrozenOptions):
        return value
    if isinstance(value, Mapping):
        return FrozenOptions(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """Returns `value` as JSON would hold it: dicts and lists."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [thaw(item) for item in value]
    return value
