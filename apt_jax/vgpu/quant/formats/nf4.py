"""NormalFloat: sixteen quantiles of a Gaussian, and the largest absolute value of a block (arXiv 2305.14314)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.errors import FormatError, check_choice
from apt_jax.vgpu.quant.formats.blocks import Blocks
from apt_jax.vgpu.quant.formats.elements import Table
from apt_jax.vgpu.quant.formats.format import Encoded, Format
from apt_jax.vgpu.quant.formats.scales import cover, inverse, nan_unless_finite

# Appendix E of the paper, as bitsandbytes has it (functional.py, get_4bit_type).
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True)
class NF4(Format):
    """x ≈ level · amax of the block; native codes are indices of levels, from the lowest.

    Attributes:
      block: values that share a scale.
      scale_dtype: bfloat16: 4.25 bits a value by 64. float32 is bitsandbytes' own, without its double quantisation.
    """

    block: int = 64
    scale_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    name: ClassVar[str] = "nf4"
    element: ClassVar[Table] = Table(NF4_LEVELS)

    def __post_init__(self) -> None:
        check_choice(self.name, "scale_dtype", self.scale_dtype, ("bfloat16", "float32"))
        if self.block < 2 or self.block % 2:
            raise FormatError(f"nf4: block={self.block}; give an even number, as 64")

    @property
    def bits(self) -> float:
        return 4 + 8 * jnp.dtype(self.scale_dtype).itemsize / self.block

    def encode(self, x: jax.Array, axis: int, key: jax.Array | None, amax: jax.Array | None) -> Encoded:
        blocks = Blocks((axis,), self.block)
        split = blocks.split(x)
        largest = blocks.amax(split)
        stored = largest.astype(self.scale_dtype)
        if key is not None:
            stored = cover(stored, stored.astype(jnp.float32), largest, 1.0)
        stored = nan_unless_finite(largest, stored)
        values = self.element.round(split * blocks.expand(inverse(stored.astype(jnp.float32))), key)
        return Encoded(blocks.join(values), stored)

    def decode(self, encoded: Encoded, axis: int) -> jax.Array:
        blocks = Blocks((axis,), self.block)
        scales = encoded.scales.astype(jnp.float32)
        return blocks.join(blocks.split(encoded.values) * blocks.expand(scales))
