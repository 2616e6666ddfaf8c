"""The left-spin residual."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.model.extensions.left_spin import left_spin_residual

_rng = np.random.default_rng(0)
U = _rng.normal(size=(2, 5, 8)).astype(np.float32)
DELTA = _rng.normal(size=(2, 5, 8)).astype(np.float32)


def test_alpha_zero_is_the_plain_residual_to_the_bit() -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        u, delta = U.astype(dtype), DELTA.astype(dtype)
        np.testing.assert_array_equal(left_spin_residual(u, delta, alpha=0.0, tau=1.0), u + delta)


def test_formula() -> None:
    size = np.linalg.norm(DELTA, axis=-1, keepdims=True) / np.linalg.norm(U, axis=-1, keepdims=True)
    phi = 0.5 * np.log1p(np.exp(size - 0.3))
    expected = U + DELTA / np.sqrt(1 + phi**2)
    np.testing.assert_allclose(left_spin_residual(U, DELTA, alpha=0.5, tau=0.3), expected, rtol=1e-5)


def test_larger_updates_are_damped_more_and_tokens_are_independent() -> None:
    def gate(factor: float) -> np.ndarray:
        moved = np.asarray(left_spin_residual(U, factor * DELTA, alpha=1.0, tau=1.0)) - U
        return np.linalg.norm(moved, axis=-1) / np.linalg.norm(factor * DELTA, axis=-1)

    assert (gate(10.0) < gate(1.0)).all()
    alone = left_spin_residual(U[:, :1], DELTA[:, :1], alpha=1.0, tau=1.0)
    np.testing.assert_array_equal(left_spin_residual(U, DELTA, alpha=1.0, tau=1.0)[:, :1], alone)


def test_gradient_is_finite_where_the_update_vanishes() -> None:
    for u in (U, 0 * U):
        grads = jax.grad(lambda *a: jnp.sum(left_spin_residual(*a, alpha=1.0, tau=1.0) ** 2), (0, 1))(
            u, 0 * DELTA
        )
        assert all(np.isfinite(g).all() for g in grads)
