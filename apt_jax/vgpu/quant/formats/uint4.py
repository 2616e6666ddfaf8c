"""Four bits between the ends of a group: a scale and a zero point, as GPTQ, AWQ and HQQ store weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.errors import FormatError, check_choice
from apt_jax.vgpu.quant.formats.blocks import Blocks
from apt_jax.vgpu.quant.formats.elements import UINT4, Integer
from apt_jax.vgpu.quant.formats.format import Encoded, Format
from apt_jax.vgpu.quant.formats.scales import inverse, nan_unless_finite
from apt_jax.vgpu.quant.rounding import divide


@dataclass(frozen=True)
class UInt4(Format):
    """x ≈ (code - zero) · scale, codes from 0 to 15: 4.5 bits a value by 64. For weights: it rounds to nearest only.

    The range of a group is that of its values and 0. The zero point is no whole number, as in HQQ, and stored like
    the scale.

    Attributes:
      block: values that share a scale and a zero point.
      scale_dtype: of both, as stored.
    """

    block: int = 64
    scale_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    name: ClassVar[str] = "uint4"
    element: ClassVar[Integer] = UINT4

    def __post_init__(self) -> None:
        check_choice(self.name, "scale_dtype", self.scale_dtype, ("bfloat16", "float16", "float32"))
        if self.block < 2 or self.block % 2:
            raise FormatError(f"uint4: block={self.block}; give an even number, as 64")

    @property
    def bits(self) -> float:
        return 4 + 2 * 8 * jnp.dtype(self.scale_dtype).itemsize / self.block

    def encode(self, x: jax.Array, axis: int, key: jax.Array | None, amax: jax.Array | None) -> Encoded:
        if key is not None:
            raise FormatError("uint4: rounds to the nearest code only; use int4 for stochastic rounding")
        blocks = Blocks((axis,), self.block)
        split = blocks.split(x)
        high, low = jnp.maximum(blocks.reduce(split, jnp.max), 0), jnp.minimum(blocks.reduce(split, jnp.min), 0)
        scales = divide(high - low, self.element.max).astype(self.scale_dtype)
        scales = nan_unless_finite(blocks.amax(split), scales)
        per_step = inverse(scales.astype(jnp.float32))
        zeros = (-low * per_step).astype(self.scale_dtype)
        codes = self.element.round(split * blocks.expand(per_step) + blocks.expand(zeros.astype(jnp.float32)), None)
        return Encoded(blocks.join(codes), scales, zeros=zeros)

    def decode(self, encoded: Encoded, axis: int) -> jax.Array:
        assert encoded.zeros is not None
        blocks = Blocks((axis,), self.block)
        scales, zeros = (blocks.expand(x.astype(jnp.float32)) for x in (encoded.scales, encoded.zeros))
        return blocks.join((blocks.split(encoded.values) - zeros) * scales)
