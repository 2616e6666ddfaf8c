"""The blocks of any format, as the shapes of an array and its scales have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.formats import Format


@dataclass(frozen=True)
class Blockwise:
    """Reduces an array over blocks, and spreads one figure for each block over the array.

    Attributes:
      counts: blocks along each axis: the shape of the scales.
      shape: of the array; a multiple of `counts` in every axis.
    """

    counts: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, format: Format, x: Any, axis: int) -> Blockwise:
        scales = jax.eval_shape(lambda x: format.quantize(x, axis=axis), x).scales
        return cls(tuple(scales.shape), tuple(x.shape))

    def reduce(self, x: jax.Array, function: Callable[..., jax.Array]) -> jax.Array:
        """[K, N] -> the shape of the scales."""
        pairs = [(n, size // n) for n, size in zip(self.counts, self.shape, strict=True)]
        split = x.reshape([n for pair in pairs for n in pair])
        return function(split, axis=tuple(range(1, split.ndim, 2)))

    def spread(self, figures: jax.Array) -> jax.Array:
        """The shape of the scales -> [K, N]."""
        for axis, (n, size) in enumerate(zip(self.counts, self.shape, strict=True)):
            figures = jnp.repeat(figures, size // n, axis)
        return figures
