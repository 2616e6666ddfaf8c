"""8-bit floats with one scale for the tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.formats.elements import E4M3, E5M2, Float
from apt_jax.vgpu.quant.formats.format import Encoded, Format
from apt_jax.vgpu.quant.formats.scales import largest_finite, whole
from apt_jax.vgpu.quant.rounding import divide


@dataclass(frozen=True)
class _Float8(Format):
    """x ≈ code · scale, scale = amax / max (torchao, TransformerEngine's current scaling).

    Inf and NaN become NaN and leave the scale alone.
    """

    element: ClassVar[Float]

    @property
    def bits(self) -> float:
        return 8.0

    def encode(self, x: jax.Array, axis: int, key: jax.Array | None, amax: jax.Array | None) -> Encoded:
        largest = largest_finite(jnp.abs(x)) if amax is None else whole(amax, x.ndim)
        largest = largest.astype(jnp.float32)
        # Below the smallest normal number the quotient would be infinite.
        usable = largest >= self.element.max * jnp.finfo(jnp.float32).tiny
        to_code = jnp.where(usable, divide(self.element.max, jnp.where(usable, largest, 1.0)), 1.0)
        values = self.element.round(jnp.where(jnp.isfinite(x), x, jnp.nan) * to_code, key)
        return Encoded(values, divide(1.0, to_code))

    def decode(self, encoded: Encoded, axis: int) -> jax.Array:
        return encoded.values * encoded.scales


@dataclass(frozen=True)
class FP8E4M3(_Float8):
    """e4m3fn: 3 bits of mantissa, to 448. For weights and activations."""

    name: ClassVar[str] = "fp8_e4m3"
    element: ClassVar[Float] = E4M3


@dataclass(frozen=True)
class FP8E5M2(_Float8):
    """e5m2: 2 bits of mantissa, to 57,344. For gradients."""

    name: ClassVar[str] = "fp8_e5m2"
    element: ClassVar[Float] = E5M2
