"""What a run says of its memory before it begins."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

import apt_jax.vgpu.runtime as vb
from apt_jax import Trainer
from apt_jax.core.config import default_config, validate
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.runtime.begin import estimate_line
from apt_jax.vgpu.scheduler import estimate
from tests.trainops.engine.runs import make_config, write_data

pytestmark = pytest.mark.usefixtures("virtual_blackwell_off")

PLUGINS = load_plugins(disabled=("*",))
ON = {"vgpu__enabled": True, "vgpu__mode": "memory", "training__max_steps": 1, "training__warmup_steps": 0}


def run_of(config):
    return SimpleNamespace(config=config, vocab_size=300)


def of_mode(mode, **model):
    config = default_config()
    config.vgpu.enabled, config.vgpu.mode = True, mode
    config.model.update(model)
    return validate(config)


def test_a_run_begins_with_the_closed_forms_memory(tmp_path, capfd):
    config = make_config(write_data(tmp_path), monitoring__console="plain", **ON)
    trainer = Trainer.from_config(config, plugins=PLUGINS)
    trainer.train()
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Virtual Blackwell")]
    found = estimate(trainer.config, 1, trainer.tokenizer.vocab_size)
    assert len(lines) == 1
    assert f"mode memory: about {found.memory_per_gpu / 2**30:.3g} GiB a device by the closed form" in lines[0]


@pytest.mark.parametrize("switch", ["auto_estimate", "verbose", "console", "enabled"])
def test_it_can_be_left_out(switch, tmp_path, capfd):
    changes = {"monitoring__console": "off" if switch == "console" else "plain"}
    if switch == "enabled":
        changes["vgpu__enabled"] = False
    elif switch != "console":
        vb.enable("memory", **{"verbose": True, switch: False})
    capfd.readouterr()
    Trainer.from_config(make_config(write_data(tmp_path), **{**ON, **changes}), plugins=PLUGINS).train()
    assert "closed form" not in capfd.readouterr().out


def test_more_devices_hold_less_each():
    run = run_of(of_mode("balanced"))
    assert estimate_line(run, 1) != estimate_line(run, 8)
    assert "quantized matmuls" not in estimate_line(run, 1)
    assert "quantized matmuls need is not counted" in estimate_line(run_of(of_mode("speed")), 1)


def test_an_architecture_that_is_not_known_is_one_line():
    config = of_mode("memory")
    line = estimate_line(run_of(replace(config, model=replace(config.model, architecture="mine"))), 1)
    assert "\n" not in line
    assert line.startswith("Virtual Blackwell, mode memory: no estimate of memory: model.architecture: unknown")
