"""Modes: what they set, what they leave, and that runs and plans really have it."""

from __future__ import annotations

import json

import pytest
from flax import nnx

import apt_jax.vgpu.runtime as vb
from apt_jax import APTModel, Trainer
from apt_jax.core.config import default_config, diff, parse_command_line, validate
from apt_jax.core.configured import configured
from apt_jax.core.errors import ConfigError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.quant.dot import QuantizedDot, find_recipe
from apt_jax.vgpu.runtime.modes import MODES, apply_mode, kept

pytestmark = pytest.mark.usefixtures("virtual_blackwell_off")

PLUGINS = load_plugins(disabled=("*",))
TINY = [
    "--config=playground", "--config.model.hidden_size=32", "--config.model.intermediate_size=64",
    "--config.model.num_layers=2", "--config.model.num_attention_heads=2", "--config.training.max_steps=3",
    "--config.training.warmup_steps=1", "--config.training.sample_tokens=0", "--config.training.batch_size=8",
    "--config.data.hlbd_samples=200",
]  # fmt: skip


def config_with(*options):
    return parse_command_line([*TINY, *options]).validated


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_sets_its_keys_once(mode):
    config = default_config()
    config.vgpu.enabled, config.vgpu.mode = True, mode
    before = validate(config)
    after = configured(before, PLUGINS)
    assert len(diff(before, after)) == len(MODES[mode].values)
    assert configured(after, PLUGINS) == after


def test_what_the_user_set_stays():
    config = config_with("--config.vgpu.enabled=true", "--config.vgpu.mode=memory", "--config.model.remat_policy=dots")
    after = apply_mode(config)
    assert after.model.remat_policy == "dots" and after.training.mixed_precision == "bf16"
    assert kept(after) == {"model.remat_policy": "dots"}


def test_off_changes_nothing():
    config = config_with()
    assert configured(config, PLUGINS) == config


def test_a_run_is_changed_says_so_and_records_it(tmp_path, capfd):
    options = ("--config.vgpu.enabled=true", "--config.vgpu.mode=memory", "--config.training.mixed_precision=fp32")
    Trainer.from_config(config_with(*options), workdir=tmp_path / "run", plugins=PLUGINS).train()
    assert "changed by a plugin: model.remat_policy" in capfd.readouterr().out
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["remat_policy"] == "full" and saved["vgpu"]["mode"] == "memory"


def test_memory_mode_is_the_same_mathematics():
    """Recomputed in float32, every loss is that of the plain run."""
    options = ("--config.training.mixed_precision=fp32", "--config.training.optimizer=adamw")
    plain = Trainer.from_config(config_with(*options), plugins=PLUGINS).train()
    with_vb = vb.enable("memory", verbose=False)
    assert with_vb.active
    trained = Trainer.from_config(config_with(*options), plugins=PLUGINS)
    report = trained.train()
    assert trained.config.model.remat_policy == "full"
    assert report["final"]["loss"] == pytest.approx(plain["final"]["loss"], rel=1e-6)


def test_a_built_model_is_adapted(capsys):
    model = APTModel(hidden_size=32, num_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64)
    assert vb.enable_vb_optimization(model, "memory") is model
    assert model.remat_policy == "full"
    out = capsys.readouterr().out
    assert "remat_policy: none -> full" in out and "training.mixed_precision=bf16" in out
    assert vb.VirtualBlackwellAdapter("memory").adapt(model).changes == (), "done once"
    with pytest.raises(ConfigError, match=r"no flax\.nnx\.Module"):
        vb.enable_vb_optimization(nnx)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="turbo"):
        vb.VirtualBlackwellAdapter("turbo")


TEXTS = [f"a text of some words, number {i}, and {i + 1}" for i in range(60)]


def given_model():
    return APTModel(hidden_size=32, num_layers=2, num_attention_heads=2, intermediate_size=64,
                    max_position_embeddings=32, vocab_size=512)  # fmt: skip


def trained_on(model, *options):
    config = config_with("--config.data.tokenizer=bpe", "--config.data.tokenizer_vocab_size=300",
                         "--config.training.mixed_precision=fp32", *options)  # fmt: skip
    trainer = Trainer(model, TEXTS, config=config, plugins=PLUGINS)
    return trainer, trainer.train()["final"]["loss"]


SPEED = ("--config.vgpu.enabled=true", "--config.vgpu.mode=speed")


def test_a_given_model_is_adapted_for_the_run_and_stays_as_it_is(capfd):
    model = given_model()
    _, plain = trained_on(model)
    assert "matmuls" not in capfd.readouterr().out
    trainer, loss = trained_on(model, *SPEED)
    assert "matmuls: nvfp4: emulated; cpu has no FP4 units (layers" in capfd.readouterr().out
    assert trainer.model.layers.mlp.up.dot_general == QuantizedDot(find_recipe("nvfp4"), "layers/mlp/up")
    assert not hasattr(model, "quantization") and not isinstance(model.layers.mlp.up.dot_general, QuantizedDot)
    assert loss != plain and loss == pytest.approx(plain, rel=0.05)
    trained_on(trainer.model, *SPEED)  # what was trained is trained on
    assert trainer.model.remat_policy == "weights"
    trainer, _ = trained_on(model, "--config.vgpu.enabled=true", "--config.vgpu.mode=memory")
    assert trainer.model.remat_policy == "full" and model.remat_policy == "none"


def test_a_model_that_was_adapted_keeps_its_recipe_and_the_run_says_which(capfd):
    model = vb.enable_vb_optimization(given_model(), "speed", recipe="mxfp8")
    assert vb.VirtualBlackwellAdapter("speed").adapt(model).changes == ()
    for options in ((), SPEED):
        trainer, _ = trained_on(model, *options)
        assert trainer.model.layers.mlp.up.dot_general.recipe.name == "mxfp8"
        assert "matmuls: mxfp8: emulated; cpu has no FP8 units (layers" in capfd.readouterr().out
