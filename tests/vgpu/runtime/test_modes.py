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
from apt_jax.vgpu.runtime.modes import MODES, apply_mode, kept

PLUGINS = load_plugins(disabled=("*",))
TINY = [
    "--config=playground", "--config.model.hidden_size=32", "--config.model.intermediate_size=64",
    "--config.model.num_layers=2", "--config.model.num_attention_heads=2", "--config.training.max_steps=3",
    "--config.training.warmup_steps=1", "--config.training.sample_tokens=0", "--config.training.batch_size=8",
    "--config.data.hlbd_samples=200",
]  # fmt: skip


@pytest.fixture(autouse=True)
def off(monkeypatch, tmp_path):
    for name in ("ENABLE_VIRTUAL_BLACKWELL", "VB_MODE", "VB_AUTO_PATCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    vb.disable()
    yield
    vb.disable()


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
    with pytest.raises(ConfigError, match=r"no flax\.nnx\.Module"):
        vb.enable_vb_optimization(nnx)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="turbo"):
        vb.VirtualBlackwellAdapter("turbo")
