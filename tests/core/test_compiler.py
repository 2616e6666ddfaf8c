"""The settings for XLA:CPU: they are accepted, and they mend what they are for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.core.compiler import compiler_options
from apt_jax.model.optim.norm import global_norm

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


def test_sums_of_rows_and_norms_stay_exact() -> None:
    plain = compiler_options("cpu", largest_array=2**22)
    assert "xla_disable_hlo_passes" in plain
    assert "xla_disable_hlo_passes" not in compiler_options("cpu", largest_array=2**22 + 1)
    x = np.random.default_rng(0).random((64, 2**16), dtype=np.float32)
    exact = x.astype(np.float64)
    row_sums = jax.jit(lambda x: jnp.sum(x, axis=-1), compiler_options=plain)(x)
    np.testing.assert_allclose(row_sums, exact.sum(-1), rtol=1e-5)
    norm = jax.jit(global_norm, compiler_options=plain)({"a": x, "b": x[0]})
    np.testing.assert_allclose(norm, np.sqrt((exact**2).sum() + (exact[0] ** 2).sum()), rtol=1e-5)
