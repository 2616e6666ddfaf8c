"""Rounding to the next value of a grid, to the nearest one or at random without bias.

Stochastic rounding goes up with the probability p = (x - below) / (above - below), so that its mean is x.
Every element draws for itself: one uniform number of 23 bits, which bounds the bias by 2^-23 of a step.
The same key gives the same result, whatever the sharding; fold step and layer into it, and reuse the key
where a computation is repeated (rematerialisation).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def round_to_integer(x: jax.Array, key: jax.Array | None) -> jax.Array:
    """float32 -> float32 of whole numbers: half to even, or at random with a key."""
    return jnp.round(x) if key is None else jnp.floor(x + jax.random.uniform(key, x.shape))


def round_to_float(x: jax.Array, key: jax.Array | None, *, mantissa: int, min_exponent: int) -> jax.Array:
    """float32 -> the values of a float with `mantissa` stored bits and no bound above.

    Args:
      min_exponent: of its smallest normal number; the steps below are as wide as there.
    """
    biased = (lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> 23) - mantissa
    biased = jnp.maximum(biased, 127 + min_exponent - mantissa)  # exponent of one step
    step, per_step = exp2(biased), exp2(254 - biased)
    return round_to_integer(x * per_step, key) * step


def round_to_table(x: jax.Array, key: jax.Array | None, levels: Sequence[float]) -> jax.Array:
    """float32 -> the values of an ascending table; at equal distance the lower one."""
    if key is None:
        return lookup([x > middle for middle in middles(levels)], levels)
    over = [x >= level for level in levels[1:-1]]
    below, above = lookup(over, levels[:-1]), lookup(over, levels[1:])
    return jnp.where(jax.random.uniform(key, x.shape) < (x - below) / (above - below), above, below)


def without_nan(x: jax.Array) -> jax.Array:
    """float32 -> the same, 0 for NaN.

    By its bits: of a select XLA moves the zeros out of a loop over layers, where they lie as a whole array.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type(bits & -(x == x).astype(jnp.int32), jnp.float32)


def middles(levels: Sequence[float]) -> list[jax.Array]:
    """Half-way points in float32."""
    table = [jnp.float32(level) for level in levels]
    return [(low + high) / 2 for low, high in itertools.pairwise(table)]


def lookup(over: Sequence[jax.Array], levels: Sequence[float]) -> jax.Array:
    """levels[number of conditions that hold], each of which implies those before it; selects, for there is no gather
    that is fast everywhere."""
    value = jnp.full(over[0].shape, levels[0], jnp.float32)
    for condition, level in zip(over, levels[1:], strict=True):
        value = jnp.where(condition, jnp.float32(level), value)
    return value


def divide(a: jax.Array | float, b: jax.Array | float) -> jax.Array:
    """a / b, rounded once, as the libraries do that we are held to bit for bit.

    Left to itself XLA multiplies by the reciprocal of a constant or broadcast divisor, and merges divisions.
    """
    a, b = lax.optimization_barrier(jnp.broadcast_arrays(jnp.float32(a), jnp.float32(b)))
    return lax.optimization_barrier(a / b)


def exp2(biased: jax.Array) -> jax.Array:
    """int32 exponent with bias 127, from 1 to 254 -> 2^(exponent - 127), exactly; 0 -> 0."""
    return lax.bitcast_convert_type(biased << 23, jnp.float32)


def next_up(scale: jax.Array) -> jax.Array:
    """The next larger number of the dtype of a positive float."""
    bits = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[scale.dtype.itemsize * 8]
    return lax.bitcast_convert_type(lax.bitcast_convert_type(scale, bits) + bits(1), scale.dtype)
