"""NVFP4: e2m1 in blocks of 16 under e4m3 scales, and one float32 scale for the tensor above them.

Libraries agree on the format and not on the order of operations, which moves single roundings: on bfloat16
Gaussians torchao and TransformerEngine differ in up to 0.7 % of scales and 0.2 % of codes, as the largest value has
it. The order is an option, and each is held to its library bit for bit by tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.errors import FormatError, check_axis, check_choice
from apt_jax.vgpu.quant.formats.blocks import Blocks
from apt_jax.vgpu.quant.formats.elements import E2M1, E4M3, Float
from apt_jax.vgpu.quant.formats.format import Encoded, Format
from apt_jax.vgpu.quant.formats.nvfp4_orders import ORDERS, TE, TorchAO
from apt_jax.vgpu.quant.formats.scales import cover, largest_finite, nan_unless_finite, whole
from apt_jax.vgpu.quant.rounding import divide

_LEAST_AMAX = 2.0**-100  # of a tensor: below it, reciprocals of scales would overflow


@dataclass(frozen=True)
class NVFP4(Format):
    """x ≈ code · block scale · tensor scale: 4.5 bits a value, 4.03 in tiles.

    Attributes:
      levels: 2, or 1: no tensor scale. One level has a dead zone: blocks below 2^-9 lose everything.
      order: whose operations, one after another: torchao, te (TransformerEngine), compressed_tensors or
        fouroversix; see `nvfp4_orders`. They also differ in the scale of a block that is zero or nearly so.
      tiles: blocks of 16 x 16 over the last two axes, for weights: q(W).mT == q(W.mT), so that the forward and
        the backward product see the same numbers.
      four_over_six: for each block the better of two scales, its largest value at 6 or at 4, by the mean squared
        (mse), the mean absolute (mae) or the largest (abs_max) error; order fouroversix only (arXiv 2512.02010).
        Better in single rows (0.087 for 0.095 on Gaussians), and no better in tiles.
    """

    levels: Literal[1, 2] = 2
    order: Literal["torchao", "te", "compressed_tensors", "fouroversix"] = "torchao"
    tiles: bool = False
    four_over_six: Literal["mse", "mae", "abs_max"] | None = None
    name: ClassVar[str] = "nvfp4"
    block: int = field(default=16, init=False)
    element: ClassVar[Float] = E2M1

    def __post_init__(self) -> None:
        check_choice("nvfp4", "levels", self.levels, (1, 2))
        check_choice("nvfp4", "order", self.order, tuple(ORDERS))
        check_choice("nvfp4", "four_over_six", self.four_over_six, (None, "mse", "mae", "abs_max"))
        if self.levels == 1 and self.order != "torchao":
            raise FormatError(f"nvfp4: order={self.order} has two levels; use levels=2, or order=torchao")
        if self.four_over_six and self.order != "fouroversix":
            raise FormatError(f"nvfp4: four_over_six needs order=fouroversix, which is {self.order}")

    @property
    def bits(self) -> float:
        return 4 + 8 / (256 if self.tiles else 16)

    def check(self, x: Any, axis: int) -> int:
        axis = super().check(x, axis)
        if self.tiles:
            if axis < -2 or x.ndim < 2:
                raise FormatError(f"nvfp4: tiles lie in the last two axes; axis {axis} cannot be quantised with tiles")
            check_axis("nvfp4", x, -3 - axis, self.block)
        return axis

    def encode(self, x: jax.Array, axis: int, key: jax.Array | None, amax: jax.Array | None) -> Encoded:
        blocks, order = self._blocks(axis), self._order
        split = blocks.split(x)
        largest = blocks.amax(split)
        if self.levels == 1:
            amax, tensor_scale = jnp.full((1,) * x.ndim, order.scale_max * E2M1.max), None
        else:
            amax = largest_finite(largest) if amax is None else whole(amax, x.ndim)
            amax = jnp.maximum(amax.astype(jnp.float32), _LEAST_AMAX)
            tensor_scale = order.tensor_scale(amax)
        scales = order.block_scales(largest, amax).astype(E4M3.dtype)
        if self.four_over_six:
            wider = order.block_scales(largest, amax, stretch=1.5).astype(E4M3.dtype)
            at_six, at_four = (self._error(split, blocks, candidate, amax) for candidate in (scales, wider))
            scales = jnp.where(at_four < at_six, wider, scales)
        if key is not None:
            decoded = scales.astype(jnp.float32) * (1.0 if tensor_scale is None else tensor_scale)
            scales = cover(scales, decoded, largest, E2M1.max)
        scales = nan_unless_finite(largest, scales)
        values = E2M1.round(self._scaled(split, blocks, scales, amax), key)
        return Encoded(blocks.join(values), scales, tensor_scale)

    def decode(self, encoded: Encoded, axis: int) -> jax.Array:
        blocks = self._blocks(axis)
        scales = encoded.scales.astype(jnp.float32)
        if encoded.tensor_scale is not None:
            scales = scales * encoded.tensor_scale
        return blocks.join(blocks.split(encoded.values) * blocks.expand(scales))

    def _blocks(self, axis: int) -> Blocks:
        return Blocks((-2, -1) if self.tiles else (axis,), self.block)

    @property
    def _order(self) -> TorchAO | TE:
        # With 4/6 the largest block scale is put at 256: half as high again must still be an e4m3.
        return ORDERS[self.order](256.0 if self.four_over_six else E4M3.max)

    def _scaled(self, split: jax.Array, blocks: Blocks, scales: jax.Array, amax: jax.Array) -> jax.Array:
        return self._order.scaled(split, blocks.expand(scales.astype(jnp.float32)), blocks.expand(amax))

    def _error(self, split: jax.Array, blocks: Blocks, scales: jax.Array, amax: jax.Array) -> jax.Array:
        """One figure for each block, computed as fouroversix' `select_fouroversix` does."""
        values = E2M1.round(self._scaled(split, blocks, scales, amax), None)
        decoded = values * blocks.expand(scales.astype(jnp.float32)) * blocks.expand(amax)
        error = jnp.abs(divide(decoded, E2M1.max * self._order.scale_max) - split)
        if self.four_over_six == "mse":
            error = error * error
        return blocks.reduce(error, jnp.max if self.four_over_six == "abs_max" else jnp.sum)


def nvfp4_one_level() -> NVFP4:
    return NVFP4(levels=1)


def nvfp4_tiles() -> NVFP4:
    return NVFP4(tiles=True)


def nvfp4_four_over_six() -> NVFP4:
    return NVFP4(order="fouroversix", four_over_six="mse")
