"""A stack's books: what lies where, how full each level is, and what happened there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.vgpu.memory.tiers.statistics import LevelStatistics
from apt_jax.vgpu.memory.tiers.tier import Home, Leaf, Level, TierError

DEFAULT_PRIORITY = 5


@dataclass
class Value:
    """A pytree taken apart.

    Attributes:
      treedef, leaves: the pytree.
      homes: where its arrays lay.
      num_bytes: of its arrays.
    """

    treedef: Any
    leaves: list[Leaf]
    homes: list[Home]
    num_bytes: int

    @classmethod
    def of(cls, key: str, tree: Any) -> Value:
        """Takes `tree` apart.

        Raises:
          TierError: a leaf is no array, or would come back changed.
        """
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        leaves = [_array(key + jax.tree_util.keystr(path), leaf) for path, leaf in paths]
        homes = [leaf.sharding if isinstance(leaf, jax.Array) else None for leaf in leaves]
        return cls(treedef, leaves, homes, sum(leaf.nbytes for leaf in leaves))


def _array(name: str, leaf: Any) -> Leaf:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise TierError(f"'{name}': arrays of {array.dtype} cannot be moved; store jax.random.key_data(...) of it")
    if isinstance(array, jax.Array):
        if array.is_deleted():
            raise TierError(f"'{name}': the array was deleted; was it donated?")
        if not array.is_fully_addressable:
            raise TierError(f"'{name}': parts of the array belong to other processes; store its local shards")
    elif array.dtype.kind in "OSUMm" or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise TierError(f"'{name}': jax cannot hold {array.dtype} as it is; convert it (64 bits: jax_enable_x64)")
    return array


@dataclass(eq=False)
class Entry:
    """A value in the stack.

    Attributes:
      level: the highest one that it lies in; this is where it is counted as lying.
      copies: level -> what the tier knows it by. Below `level` there may be unchanged copies on disk.
      pins: how often it is pinned.
      moving: it is being read, was chosen to leave its level, or is on its way.
    """

    key: str
    value: Value  # its leaves are emptied once it is stored
    level: int
    priority: int = DEFAULT_PRIORITY
    copies: dict[int, Any] = field(default_factory=dict)
    pins: int = 0
    last_used: int = 0
    moving: bool = False

    @property
    def num_bytes(self) -> int:
        """Of its arrays."""
        return self.value.num_bytes


@dataclass
class Ledger:
    """What is known of one level; counters as in `LevelStatistics`."""

    level: Level
    used: int = 0
    peak: int = 0
    hits: int = 0
    misses: int = 0
    promotions: int = 0
    demotions: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds_in: float = 0.0
    seconds_out: float = 0.0

    @property
    def free(self) -> int:
        """Bytes."""
        return self.level.capacity - self.used

    def reserve(self, num_bytes: int) -> None:
        """Takes room, before anything is copied."""
        assert num_bytes <= self.free, "room was made before"
        self.used += num_bytes
        self.peak = max(self.peak, self.used)

    def release(self, num_bytes: int) -> None:
        """Gives room back, after the copy is gone."""
        self.used -= num_bytes

    def report(self, tensors: int) -> LevelStatistics:
        """A snapshot."""
        counters = {name: value for name, value in vars(self).items() if name != "level"}
        return LevelStatistics(name=self.level.name, capacity=self.level.capacity, tensors=tensors, **counters)

    def reset(self) -> None:
        """Counts anew; what lies here stays."""
        self.__init__(self.level, self.used, self.used)
