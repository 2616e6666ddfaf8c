"""Whole runs on several devices: one checkpoint, many meshes."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from flax import nnx

from apt_jax import APTModel, Trainer
from apt_jax.core.errors import ConfigError
from apt_jax.trainops.checkpoints import load_model
from tests.trainops.engine.runs import make_config, write_data

STEPS, STOP = 6, 3
INTERLEAVED = {
    "strategy": "hybrid",
    "pipeline_parallel": 2,
    "pipeline_schedule": "interleaved",
    "pipeline_chunks": 2,
    "fsdp_parallel": 2,
    "tensor_parallel": 2,
}
RING = {"strategy": "hybrid", "context_parallel": 2, "data_parallel": 2}
ONE: dict[str, object] = {}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def run(data, workdir, layout, **options):
    devices = math.prod(value for key, value in layout.items() if key.endswith("_parallel"))
    config = make_config(
        data,
        model__num_layers=4,
        model__vocab_size=300,
        training__max_steps=STEPS,
        training__gradient_accumulation_steps=2,
        **{f"training__distributed__{key}": value for key, value in {"world_size": devices, **layout}.items()},
    )
    trainer = Trainer.from_config(config, workdir=workdir)
    return trainer, trainer.train(**options)


def parameters(workdir):
    return nnx.to_pure_dict(nnx.state(load_model(workdir).model))


@pytest.mark.parametrize(("first", "second"), [(INTERLEAVED, RING), (RING, INTERLEAVED), (INTERLEAVED, INTERLEAVED)])
def test_a_run_goes_on_on_another_mesh(data, tmp_path, first, second):
    _, whole = run(data, tmp_path / "whole", ONE)
    run(data, tmp_path / "moved", first, stop_at_step=STOP)
    trainer, moved = run(data, tmp_path / "moved", second)
    assert moved["final"]["loss"] == pytest.approx(whole["final"]["loss"], rel=1e-3)
    assert moved["final"]["eval_loss"] == pytest.approx(whole["final"]["eval_loss"], rel=1e-3)
    for found, expected in zip(
        jax.tree.leaves(parameters(tmp_path / "moved")), jax.tree.leaves(parameters(tmp_path / "whole")), strict=True
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-3)
    tokens = np.ones((1, 4), np.int32)
    assert trainer.model(tokens).shape == (1, 4, 300)  # whole again, whatever the stages held


def test_layouts_by_a_mapping():
    model = APTModel(hidden_size=16, num_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=320)
    texts = [f"a text with the number {i} in it" for i in range(24)]
    given = {"strategy": "hybrid", "pipeline_parallel": 2, "data_parallel": 2, "world_size": 4}
    options = {"max_steps": 2, "warmup_steps": 1, "batch_size": 8, "gradient_accumulation_steps": 2, "sample_tokens": 0}
    trainer = Trainer(model, texts, distributed_config=given, **options)
    assert trainer.config.training.distributed.pipeline_parallel == 2
    assert trainer.train()["status"] == "finished"
    with pytest.raises(ConfigError, match="distributed_config: unknown key 'pipeline'"):
        Trainer(model, texts, distributed_config={"pipeline": 4})
