"""DBC-DAC: identity, norm, exact recovery of low rank, and the share of noise it keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.model.optim.dbc_dac import dbc_dac


def _apply(g, *, rank=0.1, blend=1.0, mask=True, seed=0):
    tx = dbc_dac(rank=rank, blend=blend, mask={"w": mask}, seed=seed)
    out, state = jax.jit(tx.update)({"w": g}, tx.init({"w": g}))
    return out["w"], state


def _cos(a, b):
    return float(jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


def test_blend_zero_is_the_identity():
    g = jax.random.normal(jax.random.key(0), (30, 40))
    np.testing.assert_array_equal(_apply(g, blend=0.0)[0], g)


def test_unmasked_parameters_pass():
    g = jax.random.normal(jax.random.key(0), (30, 40))
    np.testing.assert_array_equal(_apply(g, mask=False)[0], g)


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (3, 64, 48)])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_norm_is_kept_per_matrix(shape, scale):
    g = scale * jax.random.normal(jax.random.key(1), shape)
    out, _ = _apply(g)
    np.testing.assert_allclose(
        jnp.linalg.norm(out, axis=(-2, -1)), jnp.linalg.norm(g, axis=(-2, -1)), rtol=1e-4
    )


def test_low_rank_gradient_is_recovered_exactly():
    a, b = jax.random.normal(jax.random.key(2), (64, 4)), jax.random.normal(jax.random.key(3), (4, 80))
    g = a @ b
    out, _ = _apply(g, rank=0.1)  # rank 6 >= 4
    np.testing.assert_allclose(out, g, rtol=1e-3, atol=1e-3)


def test_white_noise_keeps_its_rank_share():
    # A 10 % range of an isotropic matrix, sketched from the matrix itself, holds 0.2 of its energy
    # (cosine 0.45); a projection that counted singular values twice would fall to 0.1 or below.
    noise = [jax.random.normal(jax.random.key(i), (200, 200)) for i in range(5)]
    cosines = [_cos(_apply(g, seed=i)[0], g) for i, g in enumerate(noise)]
    assert 0.35 < np.median(cosines) < 0.55


def test_zero_rows_and_zero_matrices_stay_finite():
    g = jnp.zeros((20, 20)).at[3].set(1.0)
    out, _ = _apply(g)
    assert bool(jnp.isfinite(out).all()) and float(jnp.abs(out[0]).max()) == 0.0
    assert float(jnp.abs(_apply(jnp.zeros((20, 20)))[0]).max()) == 0.0


def test_ranges_change_by_step_and_repeat_by_seed():
    g = jax.random.normal(jax.random.key(4), (40, 40))
    tx = dbc_dac(rank=0.1, blend=1.0, mask={"w": True}, seed=7)
    first, state = tx.update({"w": g}, tx.init({"w": g}))
    second, _ = tx.update({"w": g}, state)
    again, _ = tx.update({"w": g}, tx.init({"w": g}))
    assert not np.array_equal(first["w"], second["w"])
    np.testing.assert_array_equal(first["w"], again["w"])
