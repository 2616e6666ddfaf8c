"""Where parameters, gradients and optimizer state lie, and that checkpoints see layers in the model's order."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from apt_jax.core import schedules
from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError, ModelError
from apt_jax.core.layout import resolve_layout
from apt_jax.model.architectures.llama import llama
from apt_jax.model.optim.groups import param_groups
from apt_jax.model.optim.optimizers import adamw, muon, sgd
from apt_jax.trainops.distributed.context.order import zigzag_order
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.strategy import Strategy
from tests.trainops.engine import tiny

LAYERS, WIDTH, HIDDEN, ROWS = 8, 16, 32, 64
def adafactor(config, schedule, groups):
    """Keeps slots that have another shape than their parameter."""
    del config, schedule, groups
    return optax.adafactor(1e-3)


OPTIMIZERS = {"adafactor": adafactor, "adamw": adamw, "muon": muon, "sgd": sgd}


class Matrices(nnx.Module):
    """Parameters that every axis can cut, and nothing else."""

    def __init__(self):
        def param(shape, axes):
            return nnx.Param(jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape), logical_axes=axes)

        self.embed = param((ROWS, WIDTH), ("vocab", "embed"))
        self.layers = nnx.Dict(
            up=param((LAYERS, WIDTH, HIDDEN), ("layers", "embed", "mlp")),
            down=param((LAYERS, HIDDEN, WIDTH), ("layers", "mlp", "embed")),
        )


class Experts(nnx.Module):
    """One stacked layer of experts."""

    def __init__(self):
        self.layers = nnx.Dict(w=nnx.Param(jnp.ones((2, 4, 8, 16)), logical_axes=("layers", "experts", "embed", "mlp")))


def strategy_of(config, devices=8, model=Matrices, length=None, rules=None):
    layout = resolve_layout(config, devices, 0)
    mesh = make_mesh(layout.sizes, jax.devices()[:devices])
    return Strategy(nnx.state(model()), layout, mesh, rules or {}, config, length)


def on_device(shapes, shardings):
    """Bytes that one device holds of a tree."""
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize for x, where in pairs)


def optimizer_of(strategy, name="adamw"):
    groups = param_groups(strategy.axes)
    return OPTIMIZERS[name](tiny.TRAINING, schedules.cosine(tiny.TRAINING), groups)


def interleaved(chunks=2, pipe=2, **others):
    return DistributedConfig(
        strategy="hybrid", pipeline_parallel=pipe, pipeline_schedule="interleaved", pipeline_chunks=chunks, **others
    )


# What there is.


def test_the_model_is_described():
    strategy = strategy_of(DistributedConfig(strategy="fsdp"))
    assert strategy.axes == {
        "embed": ("vocab", "embed"),
        "layers": {"up": ("layers", "embed", "mlp"), "down": ("layers", "mlp", "embed")},
    }
    assert strategy.num_params == ROWS * WIDTH + 2 * LAYERS * WIDTH * HIDDEN
    assert strategy.largest_array == LAYERS * WIDTH * HIDDEN
    assert strategy.abstract_params["layers"]["up"].shape == (LAYERS, WIDTH, HIDDEN)
    assert strategy.token_order is None and strategy.rules.attend is None


def test_axes_of_a_real_model_have_the_structure_of_its_parameters():
    state = nnx.eval_shape(lambda: nnx.state(llama(tiny.MODEL, tiny.VOCAB, nnx.Rngs(0))))
    layout = resolve_layout(DistributedConfig(strategy="fsdp"), 8, 0)
    strategy = Strategy(state, layout, make_mesh(layout.sizes), {}, DistributedConfig())
    shapes = jax.tree.map(lambda x: len(x.shape), nnx.to_pure_dict(state))
    assert jax.tree.map(len, strategy.axes, is_leaf=lambda x: isinstance(x, tuple)) == shapes


def test_a_cut_sequence_gets_its_attention_and_order():
    cut = strategy_of(DistributedConfig(strategy="hybrid", context_parallel=2), length=16)
    assert cut.rules.attend is not None
    np.testing.assert_array_equal(cut.token_order, zigzag_order(16, 2))
    plain = strategy_of(DistributedConfig(strategy="hybrid", context_parallel=2, context_method="ulysses"), length=16)
    assert plain.rules.attend is not None and plain.token_order is None


def test_sequence_parallelism_reaches_the_rules():
    assert strategy_of(DistributedConfig(strategy="sequence")).rules.ways("norm_seq") == 8
    assert strategy_of(DistributedConfig(strategy="tensor")).rules.ways("norm_seq") == 1


# ZeRO: Rajbhandari et al., arXiv:1910.02054, figure 1. Here everything is fp32, so of Ψ parameters a device holds
# 4 Ψ bytes of weights, 4 Ψ of gradients and K Ψ = 8 Ψ of Adam's moments, each divided by N from its stage on.


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients", "moments"),
    [("ddp", 1, 1, 1), ("zero1", 1, 1, 8), ("zero2", 1, 8, 8), ("zero3", 8, 8, 8), ("fsdp", 8, 8, 8)],
)
def test_zero_stages_divide_what_the_paper_says(strategy, weights, gradients, moments):
    bound = strategy_of(DistributedConfig(strategy=strategy))
    tx = optimizer_of(bound)
    state = jax.eval_shape(tx.init, bound.abstract_params)
    counters = sum(x.dtype.itemsize for x in jax.tree.leaves(state) if x.shape == ())
    psi = bound.num_params
    assert on_device(bound.abstract_params, bound.param_shardings) == 4 * psi // weights
    assert on_device(bound.abstract_params, bound.gradient_shardings) == 4 * psi // gradients
    assert on_device(state, bound.optimizer_shardings(tx)) - counters == 8 * psi // moments


@pytest.mark.parametrize(("strategy", "weights"), [("zero1", 4), ("zero2", 4), ("zero3", 8)])
def test_zero_stages_leave_the_other_axes_cut(strategy, weights):
    config = DistributedConfig(strategy=strategy, tensor_parallel=2, pipeline_parallel=2)
    bound = strategy_of(config)
    assert bound.layout.sizes["fsdp"] == 2
    assert on_device(bound.abstract_params, bound.param_shardings) == 4 * bound.num_params // weights
    moments = bound.optimizer_shardings(optax.trace(0.9))
    assert on_device(bound.abstract_params, moments) == 4 * bound.num_params // 8


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_gradients_are_pinned_where_they_are_accumulated(strategy):
    bound = strategy_of(DistributedConfig(strategy=strategy))
    grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), bound.abstract_params)
    pinned = jax.jit(bound.pin_gradients)(grads)
    for g, where in zip(jax.tree.leaves(pinned), jax.tree.leaves(bound.gradient_shardings), strict=True):
        assert g.sharding.is_equivalent_to(where, g.ndim)


def test_one_device_pins_nothing():
    bound = strategy_of(DistributedConfig(strategy="zero2"), devices=1)
    grads = {"x": jnp.ones(3)}
    assert bound.pin_gradients(grads) is grads


# Layers in groups.


def test_groups_of_layers_give_each_stage_its_own():
    """Stage s of p runs groups s, s + p, …: row j of the state is the j-th group of every stage."""
    bound = strategy_of(interleaved(chunks=2, pipe=2, fsdp_parallel=1, tensor_parallel=2))
    params = nnx.to_pure_dict(nnx.state(Matrices()))
    kept = jax.device_put(bound.arrange(params), bound.param_shardings)
    up = kept["layers"]["up"]
    assert up.shape == (2, LAYERS // 2, WIDTH, HIDDEN) == bound.abstract_params["layers"]["up"].shape
    np.testing.assert_array_equal(kept["embed"], params["embed"])
    stages = {d: at[0] for at, d in np.ndenumerate(bound.mesh.devices)}
    held = LAYERS // 4
    for shard in up.addressable_shards:
        stage = stages[shard.device]
        for group in range(2):
            first = (group * 2 + stage) * held
            whole = np.asarray(params["layers"]["up"])[first : first + held][(..., *shard.index[2:])]
            np.testing.assert_array_equal(shard.data[group], whole)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_a_state_survives_being_saved(optimizer, chunks):
    config = interleaved(chunks) if chunks > 1 else DistributedConfig(strategy="hybrid", pipeline_parallel=2)
    bound = strategy_of(config)
    tx = optimizer_of(bound, optimizer)
    params = nnx.to_pure_dict(nnx.state(Matrices()))
    kept = jax.device_put(bound.arrange(params), bound.param_shardings)
    where = {"params": bound.param_shardings, "opt": bound.optimizer_shardings(tx)}

    def stepped(params):  # so that no slot is all zeros
        updates, opt = tx.update(params, tx.init(params), params)
        return {"params": optax.apply_updates(params, updates), "opt": opt}

    state = jax.jit(stepped, out_shardings=where)(kept)
    saved = bound.to_saved(state)
    abstract = bound.abstract_saved(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    )
    for x, shape in zip(jax.tree.leaves(saved), jax.tree.leaves(abstract), strict=True):
        assert (x.shape, x.dtype) == (shape.shape, shape.dtype)
        assert x.sharding.is_equivalent_to(shape.sharding, x.ndim)
    natural = jax.eval_shape(tx.init, params)
    assert jax.tree.map(lambda x: x.shape, saved["opt"]) == jax.tree.map(lambda x: x.shape, natural)
    assert jax.tree.map(lambda x: x.shape, saved["params"]) == jax.tree.map(lambda x: x.shape, params)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)
    back = bound.from_saved(saved, target)
    for x, y, place in zip(*map(jax.tree.leaves, (state, back, where)), strict=True):
        np.testing.assert_array_equal(x, y)
        assert y.sharding.is_equivalent_to(place, y.ndim)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_does_the_same_to_layers_in_groups(optimizer):
    bound = strategy_of(interleaved(2))
    tx = optimizer_of(bound, optimizer)
    params = jax.tree.map(lambda x: jnp.sin(x), nnx.to_pure_dict(nnx.state(Matrices())))

    def stepped(params):
        updates, opt = tx.update(params, tx.init(params), params)
        return optax.apply_updates(params, updates), opt

    plain, plain_opt = jax.jit(stepped)(params)
    kept = jax.device_put(bound.arrange(params), bound.param_shardings)
    out = bound.param_shardings, bound.optimizer_shardings(tx)
    grouped, opt = bound.to_saved(jax.jit(stepped, out_shardings=out)(kept))
    for x, y in zip(jax.tree.leaves((plain, plain_opt)), jax.tree.leaves((grouped, opt)), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def test_nothing_is_moved_where_nothing_changes():
    bound = strategy_of(DistributedConfig(strategy="hybrid", pipeline_parallel=2))
    tree = {"layers": {"up": jnp.ones((LAYERS, 2))}}
    assert bound.arrange(tree) is bound.to_saved(tree) is bound.abstract_saved(tree) is bound.from_saved(tree, None)
    assert bound.arrange(tree) is tree
    # Without a pipeline there are no groups either, whatever the config says.
    assert strategy_of(DistributedConfig(strategy="fsdp", pipeline_chunks=2)).rows == 1


# What does not fit.


def test_experts():
    bound = strategy_of(DistributedConfig(strategy="expert", expert_parallel=4), model=Experts)
    assert bound.param_shardings["layers"]["w"].shard_shape((2, 4, 8, 16)) == (2, 1, 8, 16)
    with pytest.raises(ConfigError) as caught:
        strategy_of(DistributedConfig(strategy="expert"))
    assert str(caught.value) == (
        "training.distributed.expert_parallel: 8 devices for experts, but no parameter of the model has an axis "
        "'experts'; use data_parallel or fsdp_parallel"
    )


def test_a_pipeline_needs_stacked_layers():
    class Flat(nnx.Module):
        def __init__(self):
            self.embed = nnx.Param(jnp.ones((4, 8)), logical_axes=("vocab", "embed"))

    with pytest.raises(ModelError) as caught:
        strategy_of(DistributedConfig(strategy="hybrid", pipeline_parallel=2), model=Flat)
    assert str(caught.value) == (
        "training.distributed.pipeline_parallel: the model has no stacked parameters under `layers`; use "
        "pipeline_parallel=1"
    )


def test_a_parameter_without_logical_axes_is_named():
    class Bare(nnx.Module):
        def __init__(self):
            self.head = nnx.Dict(w=nnx.Param(jnp.ones((4, 8))))

    with pytest.raises(ModelError) as caught:
        strategy_of(DistributedConfig(), model=Bare)
    assert str(caught.value) == (
        "parameter head.w has no logical_axes; create it as nnx.Param(value, logical_axes=(…))"
    )


def test_a_cut_sequence_needs_a_known_length_that_fits():
    config = DistributedConfig(strategy="context")
    with pytest.raises(ConfigError, match=r"^training.distributed.context_parallel: the length of a row must be known"):
        strategy_of(config)
    with pytest.raises(ConfigError, match=r"^data.sequence_length: 24 tokens cannot be cut into 16 equal pieces"):
        strategy_of(config, length=24)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistributedConfig(strategy="hybrid", pipeline_parallel=3), r"dimension 0 \(layers\) has size 8, which mesh"),
        (interleaved(2, pipe=8), r"dimension 1 \(layers\) has size 4, which mesh axes pipe = 8 do not divide"),
    ],
)
def test_layers_that_stages_cannot_share_are_named(config, message):
    devices = config.pipeline_parallel
    with pytest.raises(ConfigError, match=rf"^parameter layers\.(up|down): {message}"):
        strategy_of(config, devices, rules={"embed": ()})


def test_rules_of_a_plugin_are_followed():
    bound = strategy_of(DistributedConfig(strategy="fsdp"), rules={"embed": (), "mlp": ("fsdp",)})
    assert bound.param_shardings["layers"]["up"].shard_shape((LAYERS, WIDTH, HIDDEN)) == (LAYERS, WIDTH, HIDDEN // 8)
    assert bound.param_shardings["embed"].is_fully_replicated
    with pytest.raises(ConfigError, match=r"^sharding rule 'embed': unknown mesh axis 'tensr'; available: pipe"):
        strategy_of(DistributedConfig(), rules={"embed": ("tensr",)})
