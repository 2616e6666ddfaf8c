"""`apt-jax plan --show-schedule`."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from apt_jax.cli import main
from apt_jax.trainops.distributed.pipeline.picture import draw
from apt_jax.trainops.distributed.pipeline.table import make_table

DISTRIBUTED = "--config.training.distributed"


def show(capsys, *options: str) -> str:
    assert main(["plan", "--show-schedule", *options]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return out.out


def test_sizes_as_options(capsys):
    assert show(capsys, "--stages=4", "--microbatches=8") == draw(make_table("1f1b", 4, 8)) + "\n"
    given = show(capsys, "--schedule=interleaved", "--stages=2", "--microbatches", "4", "--chunks=3")
    assert given == draw(make_table("interleaved", 2, 4, 3)) + "\n"


def test_the_configs_sizes(capsys):
    # pro: two stages, eight microbatches
    assert show(capsys, "--config=pro") == draw(make_table("1f1b", 2, 8)) + "\n"
    changed = [
        "--config=configs/pro.py", f"{DISTRIBUTED}.pipeline_schedule=interleaved", f"{DISTRIBUTED}.pipeline_chunks=4",
        "--config.training.gradient_accumulation_steps=16", "--config.training.batch_size=64",
    ]  # fmt: skip
    assert show(capsys, *changed) == draw(make_table("interleaved", 2, 16, 4)) + "\n"


def test_options_come_before_the_config(capsys):
    given = show(capsys, "--config=pro", "--schedule=zero_bubble", "--stages=3", "--microbatches=5")
    assert given == draw(make_table("zero_bubble", 3, 5)) + "\n"


def test_json(capsys):
    report = json.loads(show(capsys, "--json", "--stages=3", "--microbatches=7", "--schedule=zero_bubble"))
    table = make_table("zero_bubble", 3, 7)
    for name in ("op", "micro", "chunk", "stash", "deferred"):
        assert np.array_equal(report[name], getattr(table, name))
    assert (report["ticks"], report["stash_size"], report["deferred_size"]) == (table.ticks, 5, 5)
    assert (report["stash_per_stage"], report["deferred_per_stage"]) == ([5, 3, 1], [1, 3, 5])
    assert report["bubble"] == report["bubble_formula"] == 4 / 32  # 2 * (1 + 2 - 1) of 7 * (1 + 2 + 1) and that
    odd = json.loads(show(capsys, "--json", "--stages=3", "--microbatches=7", "--schedule=interleaved", "--chunks=2"))
    assert odd["bubble_formula"] is None and 0 < odd["bubble"] < 1


def test_a_terminal_gets_colours_and_its_own_width(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    for name, value in {"TERM": "xterm-256color", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = show(capsys, "--stages=4", "--microbatches=8")
    assert "\x1b[32mF0\x1b[0m" in shown

    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == draw(make_table("1f1b", 4, 8), width=50) + "\n"


def test_it_imports_no_jax():
    code = (
        "import sys; from apt_jax.cli import main; main(['plan', '--show-schedule', '--config=pro']); "
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "F0B0" in done.stdout


PIPE = ["--stages=2", "--microbatches=2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "apt-jax plan: nothing to show; --show-schedule, the pipeline's schedule, is what it can show"),
        (["--config=pro"], "--show-schedule, the pipeline's schedule, is what it can show"),
        (["--show-schedule"], "--stages=N and --microbatches=N missing; or give --config=PROFILE"),
        (["--show-schedule", "--stages=2"], ": --microbatches=N missing; or give --config=PROFILE"),
        (["--show-schedule", "--stages=0"], "argument --stages: '0' is not a whole number from 1 up"),
        (["--show-schedule", *PIPE, "--stage=2"], "unexpected --stage=2 without --config=PROFILE"),
        (["--show-schedule", *PIPE, "--schedule=1fb"], "unknown schedule '1fb' (did you mean '1f1b'?)"),
        (["--show-schedule", *PIPE, "--schedule=interleaved"], "set pipeline_chunks to 2 or more"),
        (["--show-schedule", *PIPE, "--chunks=2"], "2 chunks do not go with pipeline_schedule=1f1b"),
        (
            ["--show-schedule", "--config=lite"],
            "training.distributed.pipeline_parallel is 1, which makes no pipeline; set it, or --stages, to 2 or more",
        ),
        (["--show-schedule", "--config=prp"], "unknown profile 'prp' (did you mean 'pro'?)"),
        (["--show-schedule", "--config=pro", f"{DISTRIBUTED}.pipeline_schedule=1fb"], "pipeline_schedule"),
        (["--show-schedule", "--config=pro", "--stagse=2"], "--stagse=2"),
    ],
)
def test_mistakes(options, message, capsys):
    assert main(["plan", *options]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert message in out.err
    assert out.err.startswith("apt-jax: error: ") and out.err.count("\n") == 1
