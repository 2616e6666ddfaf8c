"""The CPU's own matmul gradient against autodiff's, over shapes that take different paths through XLA."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.logical import AxisRules, target_platform, use_rules
from apt_jax.model.layers import matmul
from apt_jax.model.layers.mlp import silu_product
from apt_jax.model.layers.norm import RMSNorm, rms_norm

LEADING = [(2, 1), (3, 5), (16, 32), (7,), (2, 3, 4)]
WIDTHS = [(8, 24), (32, 7), (7, 32), (256, 64), (16, 1)]


def update(dot: Any, dtype: Any) -> Any:
    """A step that uses both gradients amid other operations, as training does."""

    @jax.jit
    def step(w: jax.Array, x: jax.Array) -> Any:
        def loss(w: jax.Array, x: jax.Array) -> jax.Array:
            contract = (((x.ndim - 1,), (0,)), ((), ()))
            return jnp.sum(jax.nn.silu(dot((2 * x).astype(dtype), w.astype(dtype), contract)) ** 2)

        dw, dx = jax.grad(loss, (0, 1))(w, x)
        return w - 0.1 * dw, dx

    return step


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("widths", WIDTHS)
def test_gradients_are_those_of_autodiff(widths: tuple[int, int], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for leading in LEADING:
        x = rng.normal(size=(*leading, widths[0])).astype(np.float32)
        w = rng.normal(size=widths).astype(np.float32)
        ours, expected = update(matmul.dot_general, dtype)(w, x), update(jax.lax.dot_general, jnp.float32)(w, x)
        tolerance = 1e-5 if dtype == jnp.float32 else 5e-2
        for a, b in zip(ours, expected, strict=True):
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), leading


def test_other_contractions_are_left_alone() -> None:
    x, y = np.ones((2, 3, 4), np.float32), np.ones((2, 5, 4), np.float32)
    batched = (((2,), (2,)), ((0,), (0,)))
    np.testing.assert_array_equal(matmul.dot_general(x, y, batched), jax.lax.dot_general(x, y, batched))


def test_accelerators_get_the_plain_dot() -> None:
    contract = (((1,), (0,)), ((), ()))

    def has_barrier() -> bool:
        gradient = jax.grad(lambda w, x: matmul.dot_general(x, w, contract).sum())
        return "optimization_barrier" in str(jax.make_jaxpr(gradient)(jnp.ones((3, 4)), jnp.ones((2, 3))))

    class Device:
        platform = "tpu"

    class Mesh:
        devices = np.array([[Device()]])

    assert target_platform() == "cpu" and has_barrier()
    with use_rules(AxisRules(Mesh(), {})):  # pyright: ignore[reportArgumentType]  # only the platform is asked
        assert target_platform() == "tpu" and not has_barrier()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_silu_product_and_norm_have_the_gradients_of_autodiff(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    x, y, d = (jnp.asarray(rng.normal(size=(2, 5, 8)), dtype) for _ in range(3))
    scale = jnp.asarray(rng.normal(size=8), jnp.float32)

    def plain_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        return (x32 / jnp.sqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-6) * scale).astype(x.dtype)

    pairs = [
        (silu_product, lambda x, y: (jax.nn.silu(x.astype(jnp.float32)) * y).astype(x.dtype), (x, y)),
        (lambda x, s: rms_norm(x, s, 1e-6), plain_norm, (x, scale)),
    ]
    for ours, plain, args in pairs:
        got, expected = jax.vjp(ours, *args), jax.vjp(plain, *args)
        tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
        for a, b in zip([got[0], *got[1](d)], [expected[0], *expected[1](d)], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(RMSNorm(8, eps=1e-6)(x), rms_norm(x, jnp.ones(8), 1e-6))
