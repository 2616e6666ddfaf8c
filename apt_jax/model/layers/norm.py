"""Root-mean-square normalisation (Zhang & Sennrich, arXiv:1910.07467)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis, computed in float32, returned in the dtype of x."""

    def __init__(self, features: int, *, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32), logical_axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x [..., C], scale float32 [C] -> [..., C] in the dtype of x.

    The backward pass keeps x and one number per row; autodiff would keep x in float32 as well.
    """
    return _forward(x, scale, eps)[0]


def _forward(x: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    x32 = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * inverse_rms * scale).astype(x.dtype), (x, inverse_rms, scale)


def _backward(
    eps: float, residuals: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del eps  # inverse_rms holds it
    x, inverse_rms, scale = residuals
    normed = x.astype(jnp.float32) * inverse_rms
    d32 = cotangent.astype(jnp.float32)
    d_normed = d32 * scale
    dx = (d_normed - normed * jnp.mean(d_normed * normed, axis=-1, keepdims=True)) * inverse_rms
    return dx.astype(x.dtype), jnp.sum(d32 * normed, axis=tuple(range(x.ndim - 1)))


rms_norm.defvjp(_forward, _backward)
