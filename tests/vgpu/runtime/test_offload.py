"""`vgpu.offload`: what each choice means, and runs that have it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import apt_jax.vgpu.runtime as vb
from apt_jax import Trainer
from apt_jax.cli import main
from apt_jax.core.config import parse_command_line
from apt_jax.core.configured import configured
from apt_jax.core.errors import ConfigError, PluginError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.runtime.offload import memory_kinds, resolve_offload

pytestmark = pytest.mark.usefixtures("virtual_blackwell_off")

PLUGINS = load_plugins(disabled=("*",))
TINY = [
    "--config=playground", "--config.model.hidden_size=32", "--config.model.intermediate_size=64",
    "--config.model.num_layers=2", "--config.model.num_attention_heads=2", "--config.training.max_steps=6",
    "--config.training.warmup_steps=1", "--config.training.sample_tokens=4", "--config.training.batch_size=8",
    "--config.training.sample_prompts=('1+1=?',)", "--config.data.hlbd_samples=200",
    "--config.training.mixed_precision=fp32", "--config.monitoring.metrics_interval=1",
]  # fmt: skip
ON = "--config.vgpu.enabled=true"


def config_with(*options):
    return parse_command_line([*TINY, *options]).validated


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ([], "none"),
        ([ON], "none"),
        ([ON, "--config.vgpu.mode=full"], "all"),
        ([ON, "--config.vgpu.mode=full", "--config.vgpu.offload=none"], "none"),
        ([ON, "--config.vgpu.mode=full", "--config.model.scan_layers=false"], "none"),
        ([ON, "--config.vgpu.mode=full", "--config.training.dbc_dac=true"], "none"),
        ([ON, "--config.vgpu.offload=state"], "state"),
    ],
)
def test_auto_offloads_in_mode_full_where_it_can(options, choice):
    assert resolve_offload(config_with(*options)) == choice
    kinds = memory_kinds(config_with(*options))
    assert (kinds is None) == (choice == "none")


@pytest.mark.parametrize(
    ("choice", "policy", "kinds"),
    [
        ("optimizer", "weights", {"optimizer/layers/.*": "pinned_host"}),
        ("state", "full", {"(params|optimizer)/layers/.*": "pinned_host"}),
        ("all", "offload", {"(params|optimizer)/layers/.*": "pinned_host"}),
    ],
)
def test_a_choice_sets_what_the_backward_pass_recomputes(choice, policy, kinds):
    config = configured(config_with(ON, f"--config.vgpu.offload={choice}"), PLUGINS)
    assert config.model.remat_policy == policy
    assert PLUGINS.transform("apt_memory_kinds", config=config) == kinds
    assert configured(config, PLUGINS) == config
    chosen = configured(config_with(ON, f"--config.vgpu.offload={choice}", "--config.model.remat_policy=dots"), PLUGINS)
    assert chosen.model.remat_policy == "dots"


def test_without_virtual_blackwell_it_is_refused():
    with pytest.raises(PluginError, match=r"vgpu.offload: state needs Virtual Blackwell, which is off"):
        configured(config_with("--config.vgpu.offload=state"), PLUGINS)
    with pytest.raises(ConfigError, match=r"arguments: offload: unknown choice 'sate'.*state"):
        vb.enable(offload="sate")


def test_a_run_goes_on_with_its_state_elsewhere(tmp_path, capfd):
    """Stopped on the device and continued from the host, and the other way round, losses are the plain run's."""
    on_device = (ON, "--config.vgpu.offload=none", "--config.model.remat_policy=offload")
    on_host = (ON, "--config.vgpu.offload=all")

    def train(workdir, options, **arguments):
        return Trainer.from_config(config_with(*options), workdir=tmp_path / workdir, plugins=PLUGINS).train(
            **arguments
        )

    train("plain", on_device)
    for workdir, first, second in (("there", on_device, on_host), ("back", on_host, on_device)):
        train(workdir, first, stop_at_step=3)
        report = train(workdir, second)
        assert report["status"] == "finished" and report["traces"] == 1
        rows = [_losses(tmp_path / name) for name in ("plain", workdir)]
        np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5)
    assert "weights and optimizer state of the layers in host memory" in capfd.readouterr().out


def _losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_plugin_may_say_what_lies_where(tmp_path, capfd):
    (tmp_path / "mine.py").write_text(
        "from apt_jax import hookimpl\napt_jax_api = '1'\n\n\n@hookimpl\ndef apt_memory_kinds(config):\n"
        "    return {'optimizer/layers/mlp/.*': 'pinned_host'}\n"
    )
    plugins = load_plugins(plugins_dir=str(tmp_path))
    Trainer.from_config(config_with("--config.training.max_steps=2"), plugins=plugins).train()
    assert "memory       optimizer state of the layers in host memory" in capfd.readouterr().out


def test_a_plan_and_a_table_of_shardings_say_what_lies_where(capsys):
    options = [*TINY, ON, "--config.vgpu.offload=all", "--config.model.vocab_size=512"]
    assert main(["plan", "--target=cpu:1", *options, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["allocated"]["host"] > 0 and plan["bounds"]["host"] > 0
    assert main(["shardings", *options]) == 0
    assert "of a device's share, in its host's memory: " in capsys.readouterr().out
