"""The global norm of a gradient, exact on every backend, and the clip by it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from apt_jax.core.logical import target_platform


def global_norm(tree: Any) -> jax.Array:
    """√(Σ x²) over all elements of all arrays, float32 [].

    Rows are summed first, then the sums of rows: XLA:CPU may add up an array one element after the other,
    and over millions of elements that loses digits. The barrier keeps the two sums apart; elsewhere it would only
    keep a step from sharing one norm between the clip and the metrics.
    """
    apart = jax.lax.optimization_barrier if target_platform() == "cpu" else lambda rows: rows

    def square(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        if x.ndim < 2:
            return jnp.sum(x * x)
        return jnp.sum(apart(jnp.sum(x * x, axis=-1)))

    return jnp.sqrt(sum(map(square, jax.tree.leaves(tree)), start=jnp.float32(0)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient down to `max_norm` where its global norm is larger (arXiv:1211.5063)."""

    def clip(updates: Any, params: Any = None) -> Any:
        del params
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(global_norm(updates), 1e-30))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates)

    return optax.stateless(clip)
