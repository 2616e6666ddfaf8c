"""Scales: how they are chosen for a block's largest value, and stored."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from apt_jax.vgpu.quant.rounding import divide, exp2, next_up


def nan_unless_finite(amax: jax.Array, stored: jax.Array) -> jax.Array:
    """The scales, but NaN where `amax` is inf or NaN: such a block is lost, and says so.

    Comes last: a maximum, and so a clip, may turn NaN into a number on a CPU.
    """
    return jnp.where(jnp.isfinite(amax), stored, jnp.asarray(jnp.nan, stored.dtype))


def largest_finite(amax: jax.Array) -> jax.Array:
    """The maximum over all blocks but those with inf or NaN, of shape [1, …, 1]."""
    return jnp.max(jnp.where(jnp.isfinite(amax), amax, 0.0), keepdims=True)


def whole(amax: jax.Array, ndim: int) -> jax.Array:
    """A given maximum as the whole tensor's, [1, …, 1]; as it is where it has `ndim` axes: one for each row."""
    return amax if jnp.ndim(amax) == ndim else jnp.reshape(amax, (1,) * ndim)


def inverse(scale: jax.Array) -> jax.Array:
    """1 / scale, and 0 for a scale of 0, which only a block of zeros has."""
    return jnp.where(scale == 0, 0.0, divide(1.0, jnp.where(scale == 0, 1.0, scale)))


def cover(stored: jax.Array, decoded: jax.Array, amax: jax.Array, limit: float) -> jax.Array:
    """The stored scale, or the next larger one where `decoded · limit` does not reach `amax`.

    Without it the largest value of a block may saturate, and stochastic rounding would be biased there.
    """
    top = jnp.finfo(stored.dtype).max
    short = (decoded * limit < amax) & (stored.astype(jnp.float32) < float(top))
    return jnp.where(short, next_up(stored), stored)


def power_of_two_floor(amax: jax.Array, element_max: float) -> jax.Array:
    """OCP MX v1.0 §6.3, torchao FLOOR: the exponent of amax less that of the element's largest; uint8, bias 127."""
    return _biased(amax, amax_exponent(amax) - (amax_exponent(jnp.float32(element_max)) - 127))


def power_of_two_ceil(amax: jax.Array, element_max: float) -> jax.Array:
    """cuBLAS and PTX `cvt.rp.ue8m0`, torchao RCEIL: amax / max rounded up to a power of two; uint8, bias 127."""
    ratio = divide(amax, element_max)
    fraction = lax.bitcast_convert_type(ratio, jnp.int32) & 0x7FFFFF
    return _biased(amax, amax_exponent(ratio) + (fraction > 0))


def power_of_two(biased: jax.Array) -> jax.Array:
    """uint8 with bias 127 -> float32; 255 is NaN, and 0, which stands for 2^-127, is 0."""
    return jnp.where(biased == 255, jnp.nan, exp2(jnp.minimum(biased, 254).astype(jnp.int32)))


def amax_exponent(amax: Any) -> jax.Array:
    """int32 with bias 127, rounded down."""
    return lax.bitcast_convert_type(amax, jnp.int32) >> 23


def _biased(amax: jax.Array, exponent: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(amax), jnp.clip(exponent, 0, 254), 255).astype(jnp.uint8)
