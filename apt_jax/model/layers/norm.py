"""Root-mean-square normalisation (Zhang & Sennrich, arXiv:1910.07467)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis, computed in float32, returned in the dtype of x."""

    def __init__(self, features: int, *, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32), logical_axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse_rms * self.scale[...]).astype(x.dtype)
