"""The settings for XLA:CPU: they are accepted, and they mend what they are for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.core.compiler import compiler_options

B, N, T, H = 2, 2, 256, 32


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((0, 1), (0, 1))))


def query_gradient(q: Any, k: Any, v: Any) -> jax.Array:
    """A flash-style attention backward pass for the output cotangent 0, 1, 2, …, H-1; all [B, N, T, H]."""
    do = jnp.broadcast_to(jnp.arange(H, dtype=jnp.float32), q.shape)
    p = jax.nn.softmax(dot(q, k, (3, 3)), axis=-1)
    delta = jnp.sum(do * dot(p, v, (3, 2)), axis=-1, keepdims=True)
    return dot(p * (dot(do, v, (3, 3)) - delta), k, (3, 2))


def test_compiled_attention_gradient_is_right() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, B, N, T, H)).astype(np.float32)
    with jax.disable_jit():
        expected = np.asarray(query_gradient(q, k, v))
    got = jax.jit(query_gradient, compiler_options=compiler_options("cpu"))(q, k, v)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_other_platforms_get_no_option() -> None:
    assert compiler_options("tpu") == {} and compiler_options("gpu") == {}
