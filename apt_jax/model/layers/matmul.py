"""x · w for weights: `jax.lax.dot_general`, with another gradient where XLA:CPU is the compiler.

XLA:CPU multiplies row-major operands several times faster than transposed ones. The gradient that
autodiff writes for w contracts the rows of both operands: there XLA copies the wider one into its
transpose, computing whatever produced it (silu's derivative, say) element by element on the way, and
in bf16 falls back from native dot products to fp32. Written as below, only the narrower operand is
transposed, after it has been computed: 1.5 times the speed of a whole training step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.core.logical import target_platform

_ROWS_BY_COLUMNS = (((0, 1), (0, 1)), ((), ()))  # [a, b, K], [a, b, N] -> [K, N]


def dot_general(
    x: jax.Array,
    w: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **kwargs: Any,
) -> jax.Array:
    """As `jax.lax.dot_general`; on CPU, x [..., K] · w [K, N] has its own gradient.

    There, sums are kept in float32 and rounded once to the dtype of the result, forward and backward.
    """
    plain = dimension_numbers == (((x.ndim - 1,), (0,)), ((), ())) and w.ndim == 2 and x.ndim > 1
    same = x.dtype == w.dtype and x.dtype in (jnp.float32, jnp.bfloat16) and precision is None
    if not (plain and same and not kwargs and target_platform() == "cpu"):
        return jax.lax.dot_general(x, w, dimension_numbers, precision, preferred_element_type, **kwargs)
    y = _matmul(x, w)
    return y.astype(x.dtype if preferred_element_type is None else preferred_element_type)


@jax.custom_vjp
def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [..., K] · w [K, N] -> float32 [..., N]."""
    return _forward(x, w)[0]


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The dot itself, not `_matmul`: remat policies look for dots, and do not look inside a custom_vjp.
    return _dot(x, w, (((x.ndim - 1,), (0,)), ((), ()))), (x, w)


def _backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    # Behind the barrier the operands are finished arrays: nothing is computed again inside a transpose.
    x, dy = jax.lax.optimization_barrier((x, dy.astype(x.dtype)))
    dx = _dot(dy, w, (((dy.ndim - 1,), (1,)), ((), ())))
    return dx.astype(x.dtype), _weight_gradient(x, dy).astype(w.dtype)


_matmul.defvjp(_forward, _backward)


def _weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """x [..., K], dy [..., N] -> float32 [K, N], the sum over all rows.

    The rows are contracted as two axes, which XLA merges only after it has decided against folding the
    transpose into the dot. The left operand is the one that gets transposed: the narrower.
    """
    x, dy = _two_row_axes(x), _two_row_axes(dy)
    if x.shape[-1] <= dy.shape[-1]:
        return _dot(x, dy, _ROWS_BY_COLUMNS)
    # Without the barrier XLA swaps the operands instead of transposing, into a dot it cannot run in bf16.
    return jax.lax.optimization_barrier(_dot(dy, x, _ROWS_BY_COLUMNS)).T


def _two_row_axes(x: jax.Array) -> jax.Array:
    """Views [..., C] as [a, b, C]."""
    *rows, columns = x.shape
    if len(rows) == 2:
        return x
    count = x.size // max(columns, 1)
    cut = next((n for n in (64, 16, 8, 4, 2) if count % n == 0 and count > n), 1)
    return x.reshape(count // cut, cut, columns)


def _dot(a: jax.Array, b: jax.Array, dimension_numbers: Any) -> jax.Array:
    return jax.lax.dot_general(a, b, dimension_numbers, preferred_element_type=jnp.float32)
