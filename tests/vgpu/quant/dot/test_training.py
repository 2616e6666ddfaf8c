"""Runs that multiply in few bits: through the platform's Trainer, continued, and on several devices."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from apt_jax import hookimpl
from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import PluginError
from apt_jax.core.registry import load_plugins
from apt_jax.model.build import build_model
from apt_jax.trainops.checkpoints.manager import CheckpointManager
from apt_jax.trainops.engine.setup import build_setup
from apt_jax.trainops.engine.trainer import Trainer
from apt_jax.vgpu.quant.dot import QuantizedDot, measure
from tests.trainops.engine.runs import make_config, write_data
from tests.trainops.engine.tiny import TRAINING, make_program, run
from tests.vgpu.quant.dot.models import quantized_llama


def plugins_with(*rules):
    """The built-ins and a plugin that gives these rules."""

    @hookimpl
    def apt_quant_rules(config):
        return list(rules)

    extra = SimpleNamespace(apt_jax_api="1", apt_quant_rules=apt_quant_rules)
    return load_plugins(disabled=("*",), extra={"rules": extra})


def config_of(tmp_path, **changes):
    return make_config(
        write_data(tmp_path), vgpu__enabled=True, vgpu__mode="balanced", training__max_steps=24, **changes
    )


def test_the_trainer_trains_what_rules_of_a_plugin_name(tmp_path):
    config = config_of(tmp_path, checkpoints__save_interval=8)
    plugins = plugins_with(("layers/mlp/.*", "nvfp4"), ("layers/attn/[qkvo]", "fp8"))

    def rows(trainer):
        return [json.loads(line)["loss"] for line in (trainer.workdir / "metrics.jsonl").read_text().splitlines()]

    straight = Trainer(config=config, plugins=plugins, workdir=tmp_path / "straight")
    report = straight.train()
    assert report["status"] == "finished" and report["traces"] == 1
    assert len(straight.model.quantization.installed) == 7 and not straight.model.quantization.skipped
    losses = rows(straight)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3

    halves = [Trainer(config=config, plugins=plugins, workdir=tmp_path / "halves") for _ in range(2)]
    assert halves[0].train(stop_at_step=11)["status"] == "stopped"
    assert halves[1].train()["traces"] == 1
    assert rows(halves[1]) == losses

    setup = build_setup(straight.config, plugins, straight.tokenizer.vocab_size)
    assert setup.matmuls[0].startswith("fp8: emulated; cpu has no FP8 units (layers/attn/k, ")
    states = []
    for name in ("straight", "halves"):
        manager = CheckpointManager(tmp_path / name / "checkpoints", read_only=True)
        states.append(manager.restore(setup.program.abstract_state()).state)
        manager.close()
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rules_reach_models_through_plugins_only_where_it_is_enabled(tmp_path):
    config = config_of(tmp_path)
    plugins = plugins_with(("layers/mlp/.*", "nvfp4"))
    model = build_model(config, 300, plugins)
    assert isinstance(model.layers.mlp.up.dot_general, QuantizedDot)
    assert not isinstance(model.layers.attn.q.dot_general, QuantizedDot)
    off = build_model(replace(config, vgpu=replace(config.vgpu, enabled=False)), 300, plugins)
    assert not isinstance(off.layers.mlp.up.dot_general, QuantizedDot) and not hasattr(off, "quantization")
    with pytest.raises(PluginError, match=r"apt_transform_model failed: .*'layers/none' applies to no layer"):
        build_model(config, 300, plugins_with(("layers/none", "nvfp4")))


ONE = {"devices": 1}
LAYOUTS = {
    "fsdp": {"devices": 8, "distributed": DistributedConfig(strategy="fsdp")},
    "pipeline": {
        "devices": 2,
        "distributed": DistributedConfig(
            strategy="hybrid", pipeline_parallel=2, pipeline_schedule="zero_bubble"
        ),
    },
}
ACCUMULATED = replace(TRAINING, gradient_accumulation_steps=2)


def run_of(steps=2, training=TRAINING, **layout):
    program, params = make_program(training, architecture=quantized_llama("nvfp4"), **layout)
    state, losses = run(program, params, steps)
    assert program.traces == {"train_step": 1}
    return jax.device_get(program.saved_state(state).params), losses


@pytest.mark.parametrize(
    ("layout", "training"),
    [("fsdp", TRAINING), pytest.param("pipeline", ACCUMULATED, marks=pytest.mark.slow)],
)
def test_layouts_draw_and_scale_as_one_device_does(layout, training):
    """Scales are those of whole tensors and keys those of microbatch, layer and name, whatever the mesh.

    Only the order of sums differs: a gradient that lies on the border between two codes may then round to another,
    so few values are apart by more than float32 would explain.
    """
    one, losses = run_of(training=training, **ONE)
    many, other = run_of(training=training, **LAYOUTS[layout])
    np.testing.assert_allclose(losses, other, rtol=2e-5)
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, many))
    moved = np.abs(a - b) > 1e-5
    assert moved.mean() < 0.02
    assert np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(a)


@pytest.mark.slow
def test_microbatches_of_a_device_each_are_covered_too():
    """Gradients summed once over data-parallel devices: inside a shard_map, with keys of their own for each device."""
    program, params = make_program(
        ACCUMULATED, devices=2, distributed=DistributedConfig(strategy="ddp"), architecture=quantized_llama("nvfp4")
    )
    jaxpr = program.train_step.trace(program.abstract_state(), program.abstract_batch(16)).jaxpr
    alone, _ = make_program(ACCUMULATED, architecture=quantized_llama("nvfp4"), abstract=True)
    expected = measure(alone.train_step.trace(alone.abstract_state(), alone.abstract_batch(16)).jaxpr)
    assert measure(jaxpr).quantized == expected.quantized
    _, losses = run(program, params, 2)
    np.testing.assert_allclose(losses, run_of(training=ACCUMULATED, **ONE)[1], rtol=5e-3)
