"""Left-spin residual: an update that is large compared with the stream it joins is damped.

    s = ‖Δ‖ / (‖u‖ + ε)          per token
    φ = α · softplus(s − τ)
    u ← u + Δ / √(1 + φ²)

Stateless, and the same in training and evaluation. α = 0 is the plain residual.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_EPS = 1e-6


def left_spin_residual(u: jax.Array, delta: jax.Array, *, alpha: float, tau: float) -> jax.Array:
    """u, delta [..., D] -> [..., D]; norms and gate in float32.

    Args:
      alpha: strength of the damping.
      tau: relative update size at which it sets in.
    """
    size = _norm(delta) / (_norm(u) + _EPS)
    phi = alpha * jax.nn.softplus(size - tau)
    gate = 1.0 / jnp.sqrt(1.0 + phi * phi)
    return u + (gate * delta.astype(jnp.float32)).astype(u.dtype)


def _norm(x: jax.Array) -> jax.Array:
    """Euclidean norm over the last axis, kept; the floor makes its gradient finite at 0."""
    x32 = x.astype(jnp.float32)
    return jnp.sqrt(jnp.sum(x32 * x32, axis=-1, keepdims=True) + _EPS**2)
