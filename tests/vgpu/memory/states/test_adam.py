"""Compressed Adam beside optax's: updates, bytes, and what happens to gradients that are not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apt_jax import hookimpl
from apt_jax.core.config.schema import ModelConfig, TrainingConfig
from apt_jax.core.registry import load_plugins
from apt_jax.model.optim.groups import param_groups
from apt_jax.model.optim.optimizers import adamw
from apt_jax.vgpu.memory.states.adam import scale_by_compressed_adam
from apt_jax.vgpu.memory.states.codecs import FLOAT32, INT8, SQRT_UINT8, Codec, Stored
from apt_jax.vgpu.memory.states.optimizers import adamw8bit, adamw_bf16, compressed_adamw
from tests.trainops.engine.tiny import make_program

AXES = {
    "embed": {"table": ("vocab", "embed")},
    "layers": {"kernel": ("layers", "embed", "mlp"), "norm": ("layers", "norm")},
}
SHAPES = {"embed": {"table": (64, 96)}, "layers": {"kernel": (2, 48, 300), "norm": (2, 4096)}}
CONFIG = TrainingConfig(weight_decay=0.1)
OPTIMIZERS = {"adamw8bit": adamw8bit, "adamw_bf16": adamw_bf16}


def make(optimizer, config=CONFIG):
    return optimizer(config, optax.constant_schedule(1e-2), param_groups(AXES))


def tree(seed, scale=1.0):
    shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return structure.unflatten([scale * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)])


def updates_of(tx, steps):
    """Updates of each step for the same gradients: a signal under noise."""
    params, signal = tree(0), tree(1)
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for step in range(steps):
        grads = jax.tree.map(lambda a, b: 0.01 * (a + b), signal, tree(2 + step))
        updates, state = update(grads, state, params)
        found.append(updates)
    return found, state


@pytest.mark.parametrize(("name", "most"), [("adamw8bit", 0.06), ("adamw_bf16", 0.01)])
def test_the_first_steps_are_those_of_adamw(name, most):
    ours, _ = updates_of(make(OPTIMIZERS[name]), 20)
    theirs, _ = updates_of(make(adamw), 20)
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(theirs[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)  # nothing was stored yet
    for step in range(1, 20):
        for (path, a), b in zip(jax.tree.leaves_with_path(ours[step]), jax.tree.leaves(theirs[step]), strict=True):
            off = jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
            assert off <= (1e-6 if "norm" in jax.tree_util.keystr(path) else most), jax.tree_util.keystr(path)
    tables = [(u["embed"]["table"], v["embed"]["table"]) for u, v in zip(ours[1:], theirs[1:], strict=True)]
    assert any(jnp.any(a != b) for a, b in tables)  # it *is* compressed


def test_what_is_stored_how():
    _, state = updates_of(make(adamw8bit), 1)
    adam = state[0]
    assert adam.mu["layers"]["kernel"].dtype == jnp.int8 and adam.nu["layers"]["kernel"].dtype == jnp.uint8
    assert adam.mu_scale["layers"]["kernel"].shape == (2, 48, 3)  # 300 numbers: 128, 128 and 44
    assert adam.nu_scale["embed"]["table"].shape == (64, 1)
    assert adam.mu["layers"]["norm"].dtype == jnp.float32 and not jax.tree.leaves(adam.mu_scale["layers"]["norm"])
    assert jax.tree.structure(adam.mu) == jax.tree.structure(tree(0))


def test_why_the_root_is_stored():
    """Linear codes of v are zero beside a larger neighbour, and the next update is divided by nothing."""

    def encode(v, step):
        del step
        scales = v.max(-1, keepdims=True) / 255
        return Stored(jnp.round(v / scales).astype(jnp.uint8), scales)

    linear = Codec(encode, lambda stored: stored.codes * stored.scales)

    gradient = jnp.full((32, 128), 0.01).at[:, 0].set(1.0)
    largest = {}
    for name, nu in {"float": FLOAT32, "root": SQRT_UINT8, "linear": linear}.items():
        tx = scale_by_compressed_adam(0.9, 0.999, 1e-8, mu=INT8, nu=nu, tables=True)
        state = tx.init(gradient)
        update = jax.jit(tx.update)
        for _ in range(5):
            _, state = update(gradient, state)
        updates, _ = update(jnp.zeros_like(gradient), state)
        largest[name] = float(jnp.abs(updates).max())
    assert largest["float"] < 2 and largest["root"] < 2
    assert largest["linear"] > 1e4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_is_not_hidden(name, bad):
    tx = make(OPTIMIZERS[name])
    params, grads = tree(0), tree(1)
    grads["layers"]["kernel"] = grads["layers"]["kernel"].at[1, 2, 3].set(bad)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(grads, state, params)
        grads = tree(2)
    kernel = updates["layers"]["kernel"]
    assert jnp.isnan(kernel[1, 2, 3])
    assert jnp.isfinite(kernel[0]).all() and jnp.isfinite(kernel[1, 2, 128:]).all()
    if name == "adamw8bit":
        assert not jnp.isfinite(state[0].mu_scale["layers"]["kernel"][1, 2, 0])


@pytest.mark.parametrize(("name", "most"), [("adamw8bit", 2.07), ("adamw_bf16", 4.01)])
def test_bytes_per_parameter(name, most):
    model = ModelConfig(hidden_size=512, num_layers=2, num_attention_heads=8, intermediate_size=1408, vocab_size=4096)
    training = TrainingConfig(optimizer=name)
    program, params = make_program(
        training, model=model, make_optimizer=lambda groups: OPTIMIZERS[name](training, lambda step: 1e-3, groups)
    )
    state = program.init_state(params).opt_state
    kept = sum(x.nbytes for x in jax.tree.leaves(state))
    assert program.num_params > 7e6
    assert kept / program.num_params <= most  # norms and counters included


class Ternary:
    """A plugin with a codec of its own."""

    apt_jax_api = "1"

    @hookimpl
    def apt_optimizers(self):
        return {"adamw_sign": self.make}

    @staticmethod
    def make(config, schedule, groups):
        sign = Codec(
            lambda x, step: Stored(jnp.sign(x).astype(jnp.int8), jnp.mean(jnp.abs(x), -1, keepdims=True)),
            lambda stored: stored.codes * stored.scales,
        )
        return compressed_adamw(config, schedule, groups, sign, SQRT_UINT8)


def test_a_plugin_brings_a_codec():
    plugins = load_plugins(extra={"sign": Ternary()}, disabled=())
    assert {"adamw8bit", "adamw_bf16", "adamw_sign"} <= set(plugins.registry("optimizers"))
    tx = plugins.registry("optimizers").make("adamw_sign", CONFIG, optax.constant_schedule(1e-2), param_groups(AXES))
    _, state = updates_of(tx, 2)
    assert set(np.unique(state[0].mu["layers"]["kernel"])) <= {-1, 0, 1}
    assert state[0].mu_scale["layers"]["kernel"].shape == (2, 48, 1)
