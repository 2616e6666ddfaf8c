"""Half-quadratic quantisation: scales and zero points for a robust norm of the error, without data.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs, 2023
(mobiusml.github.io/hqq_blog). The error of the weights is measured by |e|^p with p < 1, which forgives a few large
errors, as outliers cause them. An auxiliary e splits the problem in two that have closed solutions, solved in turn:

    e ← shrink(w - decoded)                              the generalised soft threshold of |e|^p
    scale or zero ← least squares of w - e for the codes as they are
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.formats import Encoded, Format, Int4, Int8, UInt4
from apt_jax.vgpu.quant.formats.scales import inverse
from apt_jax.vgpu.quant.qtensor import QTensor
from apt_jax.vgpu.quant.stored.blockwise import Blockwise

# The authors' settings.
P_NORM = 0.7
BETA, KAPPA = 10.0, 1.01
ITERATIONS = 20


class _State(NamedTuple):
    """Of each block: what is refined, and the best so far."""

    scales: jax.Array
    zeros: jax.Array
    best_error: jax.Array
    best_scales: jax.Array
    best_zeros: jax.Array


def half_quadratic(format: Format, x: jax.Array, axis: int) -> QTensor:
    """x [K, N] -> quantised; uint4: the zero points are refined, as in the paper; int4, int8: the scales.

    Of all steps each block keeps the one with the least mean |e|^p, plain rounding among them. The weights are
    taken in units of the first scale, so that the threshold means the same for weights of any size.

    Raises:
      FormatError: a format that is no integer with a scale of its own for each block.
    """
    if not isinstance(format, Int4 | Int8 | UInt4) or getattr(format, "rule", "") == "q4_0":
        raise FormatError(f"{format}: method hqq refines int4, int8 and uint4; use method rtn or mse with this format")
    axis = format.check(x, axis)
    x32 = x.astype(jnp.float32)
    blocks, element, affine = Blockwise.of(format, x, axis), format.element, isinstance(format, UInt4)
    stored = jnp.dtype(format.scale_dtype)
    first = format.encode(x32, axis, None, None)
    scales = first.scales.astype(jnp.float32)
    zeros = jnp.zeros_like(scales) if first.zeros is None else first.zeros.astype(jnp.float32)
    unit = blocks.spread(inverse(scales))

    def codes_of(scales: jax.Array, zeros: jax.Array) -> jax.Array:
        return element.round(x32 * blocks.spread(inverse(scales)) + blocks.spread(zeros), None)

    def as_stored(x: jax.Array) -> jax.Array:
        return x.astype(stored).astype(jnp.float32)

    def refine(step: jax.Array, state: _State) -> _State:
        codes = codes_of(state.scales, state.zeros)
        levels = codes - blocks.spread(state.zeros)
        error = x32 - levels * blocks.spread(state.scales)
        cost = blocks.reduce(jnp.abs(error * unit) ** P_NORM, jnp.mean)
        better = cost < state.best_error
        target = x32 - _shrink(error * unit, BETA * KAPPA**step) / jnp.where(unit == 0, 1, unit)
        scales, zeros = state.scales, state.zeros
        if affine:
            zeros = as_stored(blocks.reduce(codes - target * blocks.spread(inverse(scales)), jnp.mean))
        else:
            power = blocks.reduce(jnp.square(levels), jnp.sum)
            fitted = blocks.reduce(levels * target, jnp.sum) / jnp.where(power == 0, 1, power)
            scales = as_stored(jnp.where(fitted > 0, fitted, scales))
        return _State(
            scales,
            zeros,
            jnp.where(better, cost, state.best_error),
            jnp.where(better, state.scales, state.best_scales),
            jnp.where(better, state.zeros, state.best_zeros),
        )

    state = _State(scales, zeros, jnp.full_like(scales, jnp.inf), scales, zeros)
    state = jax.lax.fori_loop(0, ITERATIONS + 1, refine, state)
    scales, zeros = state.best_scales, state.best_zeros
    found = Encoded(codes_of(scales, zeros), scales.astype(stored), zeros=zeros.astype(stored) if affine else None)
    return format.pack(found, axis, x.dtype)


def _shrink(x: jax.Array, beta: jax.Array) -> jax.Array:
    """argmin over e of |e|^p + beta/2 (e - x)², to first order."""
    size = jnp.abs(x)
    return jnp.sign(x) * jnp.maximum(size - (size + 1e-8) ** (P_NORM - 1) / beta, 0)
