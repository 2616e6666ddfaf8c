"""The table of modes: every row is a plan of its own, and says what the mode did."""

from __future__ import annotations

import pytest

import apt_jax.vgpu.runtime as vb
from apt_jax.core.config import parse_command_line
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.plan.modes import BASELINE, report_modes
from apt_jax.vgpu.runtime.modes import MODES
from apt_jax.vgpu.scheduler import parse_target

PLUGINS = load_plugins(disabled=("*",))
OPTIONS = [
    "--config=playground", "--config.model.hidden_size=64", "--config.model.intermediate_size=128",
    "--config.model.num_layers=2", "--config.model.num_attention_heads=4", "--config.model.vocab_size=512",
    "--config.training.batch_size=8", "--config.model.max_position_embeddings=256", "--config.model.remat_policy=dots",
]  # fmt: skip


def report_of(*modes):
    config = parse_command_line(OPTIONS).validated
    vb.enable("memory", verbose=False)  # a table compares modes, whatever this process is in
    try:
        return report_modes(config, PLUGINS, parse_target("cpu:1", PLUGINS), modes=modes)
    finally:
        vb.disable()


def test_each_mode_has_a_plan_of_its_own():
    report = report_of("balanced", "memory")
    plain, balanced, memory = report.rows
    assert plain.name == BASELINE and memory.total < balanced.total < plain.total
    assert (balanced.plan.remat, memory.plan.remat) == ("weights", "full"), "not the profile's dots"
    assert report.more_flops(memory) > report.more_flops(balanced)
    assert balanced.unquantized is None
    found = report.to_json()["rows"]
    assert found[0]["saved"] == 0 and all(0 < row["saved"] < 1 for row in found[1:])


@pytest.mark.slow
def test_all_modes():
    report = report_of(*MODES)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == [BASELINE, *MODES] and not any(row.note for row in report.rows), report
    assert rows["full"].plan.optimizer == "adamw8bit" and rows["memory"].plan.optimizer == "adamw"
    assert {name for name, row in rows.items() if row.unquantized is not None} == {"speed", "full"}
    text = str(report)
    assert max(map(len, text.splitlines())) <= 120 and all(f"\n{name}" in text for name in MODES)
