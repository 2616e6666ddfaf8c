"""Random bits that are computed where they are used.

jax's own (Threefry) are made by a kernel of their own on GPUs and lie in memory, four bytes for each value that is
rounded: more than what it is rounded to. These are a hash of the position and the key, some ten integer operations in
the loop that rounds. They are good enough to round with, and for nothing that must not be foreseen.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl


def hashed(key: jax.Array) -> jax.Array:
    """A key of the same seed whose bits are hashed."""
    return jax.random.wrap_key_data(jax.random.key_data(key).reshape(-1)[-2:], impl=HASHED)


def _mix(x: jax.Array) -> jax.Array:
    """uint32 -> uint32, one to one: Wellons' lowbias32, whose outputs flip by half for any flipped input bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _hash(key: jax.Array, number: jax.Array) -> jax.Array:
    return _mix(_mix(number * jnp.uint32(0x9E3779B9) + key[0]) ^ key[1])


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    # Of an array beyond 2^32 values the bits repeat.
    number, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        number = number + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    if bit_width == 64:
        high, low = (_hash(key, number * 2 + i).astype(jnp.uint64) for i in range(2))
        return (high << 32) | low
    bits = _hash(key, number)
    return bits if bit_width == 32 else (bits >> (32 - bit_width)).astype(f"uint{bit_width}")


def _seed(seed: jax.Array) -> jax.Array:
    return jnp.stack([_mix(seed.astype(jnp.uint32) + i) for i in range(2)])


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _hash(key, jnp.arange(2 * math.prod(shape), dtype=jnp.uint32)).reshape(*shape, 2)


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    inner = jnp.stack([_hash(key, jnp.uint32(data)), _hash(key[::-1], jnp.uint32(data))])
    return _mix(inner)


HASHED = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,  # pyright: ignore[reportArgumentType]  # jax folds in traced numbers as well
    name="apt_jax_hashed",
    tag="hsh",
)
