"""OCP Microscaling v1.0: blocks of 32 under a power of two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from apt_jax.vgpu.quant.errors import check_choice
from apt_jax.vgpu.quant.formats.blocks import Blocks
from apt_jax.vgpu.quant.formats.elements import E2M1, E4M3, Float
from apt_jax.vgpu.quant.formats.format import Encoded, Format
from apt_jax.vgpu.quant.formats.scales import (
    inverse,
    power_of_two,
    power_of_two_ceil,
    power_of_two_floor,
)


@dataclass(frozen=True)
class _MX(Format):
    """x ≈ code · 2^e, e stored as e8m0. A block whose scale would be 2^-127 is 0; its byte is 0, as in OCP.

    Attributes:
      scale: floor: the specification's, so values up to 8/6 of the largest code (e4m3: 512/448) saturate;
        torchao `ScaleCalculationMode.FLOOR`, gguf. rceil: none does; cuBLAS, torchao RCEIL.
    """

    scale: Literal["floor", "rceil"] = "floor"
    block: int = field(default=32, init=False)
    element: ClassVar[Float]

    def __post_init__(self) -> None:
        check_choice(self.name, "scale", self.scale, ("floor", "rceil"))

    @property
    def bits(self) -> float:
        return self.element.bits + 8 / self.block

    def encode(self, x: jax.Array, axis: int, key: jax.Array | None, amax: jax.Array | None) -> Encoded:
        blocks = Blocks((axis,), self.block)
        split = blocks.split(x)
        largest = blocks.amax(split)
        # Rounding up is what makes stochastic rounding unbiased at a block's end.
        choose = power_of_two_floor if self.scale == "floor" and key is None else power_of_two_ceil
        biased = choose(largest, self.element.max)
        values = self.element.round(split * blocks.expand(inverse(power_of_two(biased))), key)
        return Encoded(blocks.join(values), lax.bitcast_convert_type(biased, jnp.float8_e8m0fnu))

    def decode(self, encoded: Encoded, axis: int) -> jax.Array:
        blocks = Blocks((axis,), self.block)
        scales = power_of_two(lax.bitcast_convert_type(encoded.scales, jnp.uint8))
        return blocks.join(blocks.split(encoded.values) * blocks.expand(scales))


@dataclass(frozen=True)
class MXFP4(_MX):
    """e2m1 under e8m0: 4.25 bits a value."""

    name: ClassVar[str] = "mxfp4"
    element: ClassVar[Float] = E2M1


@dataclass(frozen=True)
class MXFP8(_MX):
    """e4m3 under e8m0: 8.25 bits a value."""

    name: ClassVar[str] = "mxfp8"
    element: ClassVar[Float] = E4M3


def mxfp4_rceil() -> MXFP4:
    return MXFP4(scale="rceil")


def mxfp8_rceil() -> MXFP8:
    return MXFP8(scale="rceil")
