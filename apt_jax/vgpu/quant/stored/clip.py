"""Clipping before rounding: for each block the narrower range that costs least in the squared sense."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.formats import Format
from apt_jax.vgpu.quant.qtensor import QTensor
from apt_jax.vgpu.quant.stored.blockwise import Blockwise

RATIOS = tuple(1 - 0.025 * i for i in range(1, 21))  # tried after 1, which is plain rounding


def clipped(format: Format, x: jax.Array, axis: int) -> QTensor:
    """x [K, N] -> quantised with every block's values clipped to the best share of their range.

    A block never has a larger squared error than by plain rounding. The scale of the whole tensor, where there is
    one, stays what it was. Nothing is known of the format but how it divides an array into blocks.
    """
    x32 = x.astype(jnp.float32)
    blocks = Blockwise.of(format, x, axis)
    low, high = (blocks.spread(blocks.reduce(x32, function)) for function in (jnp.min, jnp.max))
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    amax = jnp.max(jnp.where(jnp.isfinite(x32), jnp.abs(x32), 0))

    def clip(ratio: jax.Array) -> jax.Array:
        return jnp.clip(x32, low * ratio, high * ratio)

    def error(values: jax.Array) -> jax.Array:
        return blocks.reduce(jnp.square(format.fake(values, axis=axis, amax=amax) - x32), jnp.sum)

    def attempt(best: tuple[jax.Array, jax.Array], ratio: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        least, chosen = best
        cost = error(clip(ratio))
        better = cost < least  # false for NaN, so that a block which has one is left alone
        return (jnp.where(better, cost, least), jnp.where(better, ratio, chosen)), None

    first = error(x32)
    (_, chosen), _ = jax.lax.scan(attempt, (first, jnp.ones_like(first)), jnp.asarray(RATIOS, jnp.float32))
    spread = blocks.spread(chosen)
    values = jnp.where(spread < 1, clip(spread), x32)
    encoded = format.encode(values, format.check(x, axis), None, amax)
    return format.pack(encoded, axis, x.dtype)
