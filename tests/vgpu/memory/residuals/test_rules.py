"""Rules for residuals: from the config, from plugins, and what is said of those that cannot be."""

from __future__ import annotations

import json

import pytest

from apt_jax import Trainer
from apt_jax.cli import main
from apt_jax.core.config import parse_command_line
from apt_jax.core.errors import AptError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.quant.errors import FormatError

pytestmark = pytest.mark.usefixtures("virtual_blackwell_off")
PLUGINS = load_plugins(disabled=("*",))
TINY = [
    "--config=playground", "--config.model.hidden_size=64", "--config.model.intermediate_size=128",
    "--config.model.num_layers=2", "--config.model.num_attention_heads=2", "--config.training.max_steps=2",
    "--config.training.warmup_steps=1", "--config.training.sample_tokens=0", "--config.training.batch_size=8",
    "--config.data.hlbd_samples=200", "--config.model.vocab_size=600", "--config.vgpu.enabled=true",
    "--config.monitoring.metrics_interval=1",
]  # fmt: skip
PLUGIN = """
from apt_jax import hookimpl

apt_jax_api = "1"


@hookimpl
def apt_residual_rules(config):
    return [("{pattern}", {codec})]
"""


def train(*options, plugins=PLUGINS):
    return Trainer.from_config(parse_command_line([*TINY, *options]).validated, plugins=plugins).train()


def test_a_run_keeps_its_activations_in_the_format_and_says_so(capfd):
    exact = train()
    assert "residuals" not in capfd.readouterr().out
    report = train("--config.vgpu.residuals=nvfp4")
    out = capfd.readouterr().out
    assert "residuals: nvfp4" in out and "layers/mlp_gate" in out and "layers/attn_q" in out
    first, _ = (each["final"] for each in (exact, report))
    assert report["final"]["eval_loss"] == pytest.approx(first["eval_loss"], rel=0.02)
    assert report["final"]["eval_loss"] != first["eval_loss"]


def test_a_plan_needs_less(capsys):
    temporaries = []
    for residuals in ("none", "int8"):
        assert main(["plan", "--target=cpu:1", *TINY, f"--config.vgpu.residuals={residuals}", "--json"]) == 0
        temporaries.append(json.loads(capsys.readouterr().out)["allocated"]["temporaries"])
    assert temporaries[1] < temporaries[0]


def test_a_plugin_may_choose_array_by_array(tmp_path, capfd):
    (tmp_path / "mine.py").write_text(PLUGIN.format(pattern="layers/mlp_.*", codec="'int8'"))
    train(plugins=load_plugins(plugins_dir=str(tmp_path)))
    line = next(line for line in capfd.readouterr().out.splitlines() if "residuals: " in line)
    plain, _, mine = line.partition("; int8, nearest, 51%: ")
    assert "kept as computed: layers/layer_input" in plain and "layers/mlp_up" in mine and "attn" not in mine


@pytest.mark.parametrize(
    ("pattern", "codec", "message"),
    [
        ("layers/nothing", "'int8'", r"residual rule 'layers/nothing' applies to no array; what is kept .*layers/mlp_"),
        (".*", "'nvfp5'", "unknown number format 'nvfp5'.*nvfp4"),
        (".*", "3", "residuals: 3 is no codec"),
    ],
)
def test_a_rule_that_cannot_be_is_one_line(tmp_path, pattern, codec, message):
    (tmp_path / "mine.py").write_text(PLUGIN.format(pattern=pattern, codec=codec))
    with pytest.raises(AptError, match=message) as caught:
        train(plugins=load_plugins(plugins_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_blocks_that_do_not_fill_an_axis_name_the_array():
    with pytest.raises(FormatError, match=r"residual 'layers/[\w.]+': int4: axis -1 of .* exempt it") as caught:
        train("--config.vgpu.residuals=int4_g128")
    assert "\n" not in str(caught.value)
