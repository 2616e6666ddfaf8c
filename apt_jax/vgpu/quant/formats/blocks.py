"""Cutting arrays into blocks, along one axis or two, without moving any axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax


@dataclass(frozen=True)
class Blocks:
    """Blocks of `size` values along each of `axes`; an array of scales has one entry for each block.

    Attributes:
      axes: negative, ascending: (-1,), (-2,), or (-2, -1) for square tiles.
      size: values of a block along each axis; None: the whole axis is one block.
    """

    axes: tuple[int, ...]
    size: int | None

    def split(self, x: jax.Array) -> jax.Array:
        """[..., K, ...] -> [..., K/size, size, ...]."""
        for axis in self._inner(x.ndim):  # one by one, or axes that are cut explicitly would be refused
            before, length, after = x.shape[: axis - 1], x.shape[axis - 1], x.shape[axis:]
            size = self.size or length
            x = x.reshape(*before, length // size, size, *after)
        return x

    def join(self, blocks: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        for axis in self._inner(blocks.ndim - len(self.axes))[::-1]:
            before, (count, size), after = (
                blocks.shape[: axis - 1],
                blocks.shape[axis - 1 : axis + 1],
                blocks.shape[axis + 1 :],
            )
            blocks = blocks.reshape(*before, count * size, *after)
        return blocks

    def expand(self, scales: jax.Array) -> jax.Array:
        """Scales [..., K/size, ...] -> [..., K/size, 1, ...], to multiply what `split` returned."""
        return jnp.expand_dims(scales, self._inner(scales.ndim))

    def reduce(self, blocks: jax.Array, function: Callable[..., jax.Array]) -> jax.Array:
        """[..., K/size, size, ...] -> one figure for each block: [..., K/size, ...]."""
        return function(blocks, axis=self._inner(blocks.ndim - len(self.axes)))

    def amax(self, blocks: jax.Array) -> jax.Array:
        """The largest absolute value of each block; NaN if there is one, else inf if there is one.

        Taken over bit patterns, which are in the order of the values: XLA:CPU's own maximum may pass over NaN.
        """
        bits = lax.bitcast_convert_type(jnp.abs(blocks), jnp.int32)
        return lax.bitcast_convert_type(self.reduce(bits, jnp.max), jnp.float32)

    def _inner(self, ndim: int) -> tuple[int, ...]:
        """Positions, in split arrays, of the axes inside of blocks; `ndim` is that of the whole array."""
        return tuple(ndim + axis + 1 + before for before, axis in enumerate(self.axes))
