"""Tables larger than the device's memory: embeddings, adapters, experts; the rows in use lie in level 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.vgpu.memory.tiers.stack import VGPUStack
from apt_jax.vgpu.memory.tiers.tier import TierError

Rows = Any  # an array [n, …], or a pytree of arrays with one leading axis


class TieredTable:
    """Rows by number, kept in a stack in blocks of neighbouring rows.

    A lookup brings the blocks it needs to level 0, which so becomes a cache of recently used blocks. An update changes
    blocks in level 0; they are written back when they leave it.

        table = TieredTable.from_rows(stack, "embedding", embedding_VD, block_rows=256)
        x_BTD = table.lookup(tokens_BT)
        table.add(tokens_BT, -0.1 * gradient_BTD)

    Attributes:
      num_rows, block_rows: V, and rows of a block.
    """

    def __init__(
        self, stack: VGPUStack, name: str, num_rows: int, block_rows: int, make_rows: Callable[[int, int], Rows]
    ):
        """Args:
        name: the blocks are stored as `<name>/<number>`.
        make_rows: (first, end) -> rows of one block; called block by block, so that the table need not fit anywhere.

        Raises:
          TierError: sizes below 1, rows of the wrong number, or the stack has no room.
        """
        if num_rows < 1 or block_rows < 1:
            raise TierError(f"table '{name}': {num_rows} rows in blocks of {block_rows}; both must be at least 1")
        self._stack, self._name = stack, name
        self.num_rows, self.block_rows = num_rows, block_rows
        for block, first in enumerate(range(0, num_rows, block_rows)):
            rows = make_rows(first, min(first + block_rows, num_rows))
            lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(rows)}
            if lengths != {min(block_rows, num_rows - first)}:
                raise TierError(f"table '{name}': block {block} has {sorted(lengths)} rows")
            stack.put(self._key(block), rows)

    @classmethod
    def from_rows(cls, stack: VGPUStack, name: str, rows: Rows, *, block_rows: int) -> TieredTable:
        """A table of rows that lie in memory, arrays [V, …]."""
        num_rows = np.shape(jax.tree.leaves(rows)[0])[0]
        return cls(
            stack, name, num_rows, block_rows, lambda first, end: jax.tree.map(lambda leaf: leaf[first:end], rows)
        )

    def lookup(self, ids: Any) -> Rows:
        """Rows by number, exact.

        Args:
          ids: integers of any shape, on the host (not traced).

        Returns:
          Arrays of shape ids.shape + that of a row.

        Raises:
          TierError: a number is not in the table, or a block cannot be read.
        """
        flat, shape = self._numbers(ids)
        found: Rows = None
        for block, places, local in self._blocks(flat):
            rows = self._stack.get(self._key(block))
            if found is None:
                found = jax.tree.map(lambda leaf: jnp.zeros((len(flat), *leaf.shape[1:]), leaf.dtype), rows)
            found = _take(found, rows, places, local)
        if found is None:
            rows = self._stack.get(self._key(0))
            found = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), rows)
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)

    def update(self, ids: Any, rows: Rows) -> None:
        """Replaces rows; of a number given twice the last row counts. Arguments and errors as for `lookup`."""
        self._change(ids, rows, add=False)

    def add(self, ids: Any, rows: Rows) -> None:
        """Adds to rows; for a number given twice both count. Arguments and errors as for `lookup`."""
        self._change(ids, rows, add=True)

    def blocks(self) -> Iterator[Rows]:
        """All blocks in order, as they lie."""
        for block in range(-(-self.num_rows // self.block_rows)):
            yield self._stack.get(self._key(block))

    def _change(self, ids: Any, rows: Rows, *, add: bool) -> None:
        flat, shape = self._numbers(ids)
        flat_rows = jax.tree.map(lambda leaf: jnp.reshape(leaf, (len(flat), *np.shape(leaf)[len(shape) :])), rows)
        chosen = np.arange(len(flat))
        if not add:
            last = {number: place for place, number in enumerate(flat.tolist())}
            chosen = np.fromiter(last.values(), np.int64, len(last))
        for block, places, local in self._blocks(flat, chosen):
            key = self._key(block)
            block_rows = self._stack.get(key, pin=True)
            try:
                changed = _put(block_rows, flat_rows, places, local, add=add)
                self._stack.put(key, jax.block_until_ready(changed))
            finally:
                self._stack.unpin(key)

    def _blocks(
        self, flat: np.ndarray, chosen: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(block, places in `flat` that lie in it, their rows in the block).

        Both are padded to a power of two, so that few lengths are compiled: places beyond the end, rows 0.
        """
        chosen = np.arange(len(flat)) if chosen is None else chosen
        for block in np.unique(flat[chosen] // self.block_rows).tolist():
            places = chosen[flat[chosen] // self.block_rows == block]
            padded = 1 << (len(places) - 1).bit_length()
            local = np.zeros(padded, np.int32)
            local[: len(places)] = flat[places] - block * self.block_rows
            padding = np.full(padded - len(places), len(flat))
            yield block, np.concatenate([places, padding]).astype(np.int32), local

    def _numbers(self, ids: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        array = np.asarray(ids)
        if array.dtype.kind not in "iu":
            raise TierError(f"table '{self._name}': row numbers are integers, not {array.dtype}")
        wrong = array[(array < 0) | (array >= self.num_rows)]
        if wrong.size:
            raise TierError(f"table '{self._name}': no row {wrong.flat[0]}; rows are 0 to {self.num_rows - 1}")
        return array.reshape(-1).astype(np.int64), array.shape

    def _key(self, block: int) -> str:
        return f"{self._name}/{block}"


@partial(jax.jit, donate_argnums=0)
def _take(found: Rows, rows: Rows, places: jax.Array, local: jax.Array) -> Rows:
    return jax.tree.map(lambda out, block: out.at[places].set(block[local], mode="drop"), found, rows)


@partial(jax.jit, static_argnames="add")
def _put(rows: Rows, given: Rows, places: jax.Array, local: jax.Array, *, add: bool) -> Rows:
    def change(block: jax.Array, new: jax.Array) -> jax.Array:
        real = places < len(new)
        target = jnp.where(real, local, len(block))  # padding falls off the end
        chosen = jnp.take(new, places, axis=0, mode="clip").astype(block.dtype)
        at = block.at[target]
        return at.add(chosen, mode="drop") if add else at.set(chosen, mode="drop")

    return jax.tree.map(change, rows, given)
