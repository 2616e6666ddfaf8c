"""Optimizers: what is decayed, what is orthogonalised, and that each one descends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apt_jax.core.config.schema import TrainingConfig
from apt_jax.model.optim.groups import param_groups
from apt_jax.model.optim.optimizers import adamw, gradient_transforms, muon, sgd

AXES = {
    "embed": {"table": ("vocab", "embed")},
    "layers": {"kernel": ("layers", "embed", "mlp"), "norm": ("layers", "norm"), "bias": ("layers", "mlp")},
}


def _params(key):
    a, b = jax.random.split(key)
    return {
        "embed": {"table": jax.random.normal(a, (12, 8))},
        "layers": {
            "kernel": jax.random.normal(b, (3, 8, 16)),
            "norm": jnp.ones((3, 8)),
            "bias": jnp.ones((3, 16)),
        },
    }


def test_groups_follow_the_logical_axes():
    groups = param_groups(AXES)
    assert groups.matrices == {
        "embed": {"table": False},
        "layers": {"kernel": True, "norm": False, "bias": False},
    }
    assert groups.embeddings["embed"]["table"] and not groups.embeddings["layers"]["kernel"]


@pytest.mark.parametrize("optimizer", [adamw, muon, sgd])
def test_decay_touches_hidden_matrices_only(optimizer):
    config = TrainingConfig(weight_decay=0.5)
    tx = optimizer(config, optax.constant_schedule(0.1), param_groups(AXES))
    params = _params(jax.random.key(0))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(
        updates["layers"]["kernel"], -0.1 * 0.5 * params["layers"]["kernel"], rtol=1e-5
    )
    for leaf in (updates["embed"]["table"], updates["layers"]["norm"], updates["layers"]["bias"]):
        np.testing.assert_array_equal(leaf, 0)


# Muon's updates have a fifth of the RMS of AdamW's first ones.
@pytest.mark.parametrize(("optimizer", "rate"), [(adamw, 0.01), (muon, 0.05), (sgd, 0.01)])
def test_descends_on_least_squares(optimizer, rate):
    config = TrainingConfig(weight_decay=0.0)
    tx = optimizer(config, optax.constant_schedule(rate), param_groups(AXES))
    params, target = _params(jax.random.key(0)), _params(jax.random.key(1))

    def loss(p):
        return sum(
            jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True)
        )

    @jax.jit
    def step(p, s):
        u, s = tx.update(jax.grad(loss)(p), s, p)
        return optax.apply_updates(p, u), s

    state, start = tx.init(params), loss(params)
    for _ in range(100):
        params, state = step(params, state)
    assert loss(params) < 0.5 * start


def test_muon_update_of_each_layer_is_orthogonal():
    tx = muon(TrainingConfig(weight_decay=0.0), optax.constant_schedule(1.0), param_groups(AXES))
    params = _params(jax.random.key(0))
    grads = _params(jax.random.key(2))
    updates, _ = tx.update(grads, tx.init(params), params)
    for layer in np.asarray(updates["layers"]["kernel"]):
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() / singular.min() < 2.0  # five Newton-Schulz steps reach roughly equal values


def test_clip_bounds_the_global_norm():
    tx = gradient_transforms(TrainingConfig(gradient_clipping=1.0), param_groups(AXES))
    grads = jax.tree.map(lambda x: 100 * x, _params(jax.random.key(0)))
    clipped, _ = tx.update(grads, tx.init(grads), None)
    assert float(optax.tree_utils.tree_norm(clipped)) == pytest.approx(1.0, rel=1e-5)
    untouched, _ = gradient_transforms(TrainingConfig(gradient_clipping=None), param_groups(AXES)).update(
        grads, optax.EmptyState(), None
    )
    np.testing.assert_array_equal(untouched["layers"]["kernel"], grads["layers"]["kernel"])
