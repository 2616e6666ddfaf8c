"""The closed form's parts against what training really has: parameters, meshes, pipelines, argument bytes."""

from __future__ import annotations

import math

import jax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.core.config.schema import Config, DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.distributed.pipeline.table import make_table
from apt_jax.trainops.engine.setup import build_setup
from apt_jax.vgpu.scheduler.estimator import estimate
from apt_jax.vgpu.scheduler.mesh import Mesh
from apt_jax.vgpu.scheduler.shapes import parameters
from apt_jax.vgpu.scheduler.stages import deferred_size, stash_size
from apt_jax.vgpu.scheduler.step import make_step

SMALL = {
    "hidden_size": 64, "num_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
    "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
MODELS = {
    "llama": ModelConfig(architecture="llama", **SMALL, tie_word_embeddings=False),
    "qwen3": ModelConfig(architecture="qwen3", **SMALL),
    "apt": ModelConfig(architecture="apt", **SMALL),
    "apt, plain": ModelConfig(architecture="apt", **SMALL, autopoietic=False, left_spin=False, qk_norm=True),
    "biases": ModelConfig(architecture="llama", **SMALL, attention_bias=True, head_dim=32),
}
LAYOUTS = {
    "one": (DistributedConfig(strategy="ddp"), 1),
    "fsdp": (DistributedConfig(strategy="fsdp"), 8),
    "zero1": (DistributedConfig(strategy="zero1", tensor_parallel=2), 8),
    "pipeline": (DistributedConfig(strategy="hybrid", pipeline_parallel=2, fsdp_parallel=2, tensor_parallel=2), 8),
    "context": (DistributedConfig(strategy="context", context_parallel=2, fsdp_parallel=4), 8),
}


@pytest.fixture(scope="module")
def plugins():
    return load_plugins(enabled=(), disabled=("*",), plugins_dir=None)


def program(config, plugins, devices):
    return build_setup(config, plugins, config.model.vocab_size, devices=jax.devices()[:devices]).program


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_models(name, plugins):
    model = MODELS[name]
    config = Config(model=model, training=TrainingConfig(batch_size=8))
    built = program(config, plugins, 1).strategy
    real = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(built.abstract_params)
    }
    ours = {tensor.path: tensor for tensor in parameters(model)}
    assert {path: tensor.shape for path, tensor in ours.items()} == real
    for path, tensor in ours.items():
        axes = built.axes
        for key in path.split("."):
            axes = axes[key]
        assert tensor.axes == tuple(axes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw_bf16", "sgd", "muon"])
def test_argument_bytes_are_those_of_the_real_state(layout, optimizer, plugins):
    distributed, devices = LAYOUTS[layout]
    training = TrainingConfig(
        batch_size=16, gradient_accumulation_steps=2, optimizer=optimizer, distributed=distributed
    )
    config = Config(model=MODELS["apt"], training=training)
    built = program(config, plugins, devices)
    leaves = jax.tree.leaves((built.abstract_state(), built.abstract_batch(128)))
    real = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    assert estimate(config, devices).argument_bytes == real


@pytest.mark.parametrize("name", ["one", "fsdp"])
def test_argument_bytes_are_the_cpu_compilers(name, plugins):
    distributed, devices = LAYOUTS[name]
    config = Config(model=MODELS["llama"], training=TrainingConfig(batch_size=8, distributed=distributed))
    built = program(config, plugins, devices)
    compiled = built.train_step.lower(built.abstract_state(), built.abstract_batch(128)).compile()
    figures = compiled.memory_analysis()
    assert figures is not None
    assert estimate(config, devices).argument_bytes == figures.argument_size_in_bytes


@settings(deadline=None)
@given(
    schedule=st.sampled_from(["gpipe", "1f1b", "interleaved", "zero_bubble"]),
    stages=st.integers(2, 6),
    micros=st.integers(1, 12),
    chunks=st.integers(2, 4),
)
def test_buffers_are_those_of_the_table(schedule, stages, micros, chunks):
    chunks = chunks if schedule == "interleaved" else 1
    table = make_table(schedule, stages, micros, chunks)
    model = ModelConfig(architecture="llama", vocab_size=512, num_layers=stages * chunks)
    training = TrainingConfig(
        batch_size=micros,
        gradient_accumulation_steps=micros,
        distributed=DistributedConfig(pipeline_schedule=schedule, pipeline_chunks=chunks),
    )
    step = make_step(model, training, Mesh(pipe=stages), 256)
    assert stash_size(step) >= table.stash_size
    assert deferred_size(step) >= table.deferred_size
    if micros >= 2 * stages:
        assert (stash_size(step), deferred_size(step)) == (table.stash_size, table.deferred_size)


def test_the_model_is_not_needed_whole():
    """`nnx.eval_shape` would do for parameters as well; the closed form must agree without jax."""
    model = MODELS["llama"]
    from apt_jax.model.architectures.llama import llama

    state = nnx.eval_shape(lambda: nnx.state(llama(model, 512, nnx.Rngs(0))))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(state)) == sum(t.size for t in parameters(model))
