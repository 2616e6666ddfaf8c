"""Two 4-bit codes in one byte."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pack4(codes: jax.Array, axis: int) -> jax.Array:
    """uint8 codes below 16, [..., K, ...] -> uint8 [..., K/2, ...]: neighbours along `axis`, the first one low.

    The order is that of torchao, compressed-tensors and the operands of Blackwell's matrix units; K is even.
    """
    axis %= codes.ndim
    pairs = codes.reshape(*codes.shape[:axis], codes.shape[axis] // 2, 2, *codes.shape[axis + 1 :])
    # A sum and not two slices: XLA would compute the codes anew for each of them.
    return jnp.sum(pairs << _shifts(pairs.ndim, axis + 1), axis + 1, dtype=jnp.uint8)


def unpack4(packed: jax.Array, axis: int) -> jax.Array:
    """The inverse of `pack4`."""
    axis %= packed.ndim
    pairs = jnp.expand_dims(packed, axis + 1) >> _shifts(packed.ndim + 1, axis + 1)
    return (pairs & 0xF).reshape(*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])


def _shifts(ndim: int, axis: int) -> jax.Array:
    return jnp.array([0, 4], jnp.uint8).reshape([2 if i == axis else 1 for i in range(ndim)])
