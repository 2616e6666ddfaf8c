"""`apt-jax plan`: of a pipeline's schedule, and for a target."""

from __future__ import annotations

import importlib.util
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


SMALL = [
    "--config=playground", "--target=cpu:8", f"{DISTRIBUTED}.strategy=fsdp", "--config.model.num_layers=2",
    "--config.model.hidden_size=64", "--config.model.intermediate_size=128", "--config.model.vocab_size=512",
]  # fmt: skip


@pytest.mark.parametrize("missing", [("h100:8", "jax_cuda13_plugin", "gpu-compile"), ("v5e:8", "libtpu", "jax[tpu]")])
def test_a_missing_compiler_is_named(missing, capsys, monkeypatch):
    target, module, remedy = missing
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else find(name, *a))
    assert main(["plan", f"--target={target}", "--config=playground"]) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and remedy in out.err and f"--target={target}: no compiler for" in out.err
    assert main(["plan", f"--target={target}", "--config=playground", "--search"]) == 2
    assert f"error: --target={target}: no compiler for" in capsys.readouterr().err


def test_a_plan_as_text_json_and_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plan.svg"
    assert main(["plan", *SMALL, f"--plot={picture}"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    assert "playground on cpu:8: 8 × simulated CPU device" in text
    assert "strategy fsdp, zero stage 3; mesh fsdp 8 (process)" in text
    assert re.search(r"^cpu:8: compiles and fits: 1[56]\.\d GiB left$", text, re.M)
    assert " runs" not in text
    assert picture.read_text().startswith("<?xml")

    assert main(["plan", *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] and report["verdict"].startswith("compiles and fits")
    assert sum(part["bytes"] for part in report["parts"].values()) == report["total"]
    assert {each["kind"] for each in report["traffic"]} >= {"all-gather"}
    assert 0 < report["mfu_bound"] <= 1 and report["step_seconds_bound"] <= report["step_seconds_serial"]


SEARCH = [*SMALL, "--config.training.batch_size=8", "--config.training.optimizer=adamw"]


def test_a_search_compiles_and_lists(capsys):
    assert main(["plan", *SEARCH, "--search=2"]) == 0
    out = capsys.readouterr()
    assert max(map(len, out.out.splitlines())) <= 120
    assert out.err.startswith("compiling 1 of 2: fsdp 8, remat none") and "(the config as it is)" in out.err
    assert "(by the compiler)" in out.out and "* the config as it is" in out.out
    assert re.search(r"^[\d,]+ settings, [\d,]+ left after the closed form, 2 of them compiled", out.out, re.M)


def test_the_default_is_the_librarys():
    from apt_jax.cli.plan import _COMPILE_BEST
    from apt_jax.trainops.plan.search.run import COMPILE_BEST

    assert _COMPILE_BEST == COMPILE_BEST


def test_a_search_without_a_compiler(capsys):
    target = ["--target=v5e:8", "--search", "--no-compile"]  # whose compiler need not be installed
    options = [option for option in SEARCH if not option.startswith("--target")]
    assert main(["plan", *options, *target]) == 0
    out = capsys.readouterr()
    assert out.err == "" and "CLOSED FORM, nothing was compiled" in out.out
    assert "the first, as options:\n  --config.training.distributed." in out.out

    assert main(["plan", *options, *target, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not report["compiled"] and not any(entry["compiled"] for entry in report["best"])
    assert report["considered"] > sum(report["pruned"].values()) > 0
    assert report["best"][0]["step_seconds_bound"] <= report["best"][-1]["step_seconds_bound"]


def test_a_search_that_finds_nothing(capsys):
    # A row of so many tokens leaves no room on an 8 GB card.
    large = ["--config.model.max_position_embeddings=1048576", "--config.training.batch_size=1"]
    options = [option for option in SEARCH if not option.startswith("--target")]
    assert main(["plan", *options, *large, "--target=rtx3070:2", "--search", "--no-compile"]) == 1
    assert "nothing fits (CLOSED FORM" in capsys.readouterr().out


def test_changes_are_tried_where_the_compiler_refuses_to_make_a_plan(capsys, monkeypatch):
    """As compilers for TPU do; its own words are shown, and what to do."""
    import apt_jax.trainops.plan as plan

    def refuse(config, plugins, target):
        raise plan.TooLargeError(f"--target={target}: does not fit: it needs 2GiB of 1GiB, says the compiler")

    monkeypatch.setattr(plan, "make_plan", refuse)
    options = [*SMALL, "--config.training.batch_size=16", "--config.training.optimizer=sgd"]
    assert main(["plan", *options]) == 1
    out = capsys.readouterr()
    assert "changes tried by the compiler" in out.out and "gradient_accumulation_steps=2" in out.out
    assert re.search(r"MiB, fits, step ≥", out.out)
    assert out.out.endswith("--target=cpu:8: does not fit: it needs 2GiB of 1GiB, says the compiler\n")

    monkeypatch.setattr(plan.changes, "try_changes", lambda *given: ())
    assert main(["plan", *options, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report == {"fits": False, "refused": report["refused"], "remedies": []} and "2GiB" in report["refused"]
    assert main(["plan", *options, "--no-changes"]) == 2
    assert capsys.readouterr().err.startswith("apt-jax: error: --target=cpu:8: does not fit")


PIPE = ["--stages=2", "--microbatches=2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "apt-jax plan: nothing to show; give --target=DEVICE:COUNT, or --show-schedule"),
        (["--config=pro"], "nothing to show; give --target=DEVICE:COUNT, or --show-schedule"),
        (["--show-schedule", *PIPE, "--plot=a.png"], "--plot draws a plan; give --target=DEVICE:COUNT instead"),
        (["--target=cpu:8"], "apt-jax plan --target: --config=PROFILE missing"),
        (["--target=cpu:8", "--config=lite", "--show-schedule"], "--show-schedule and --target are two commands"),
        (["--target=cpu:8", "--config=lite", "--stages=2"], "--stages belongs to --show-schedule; leave one of"),
        (["--target=h1000:8", "--config=lite"], "unknown device 'h1000' (did you mean 'h100'?); available: a100, b200"),
        (["--target=h100", "--config=lite"], "--target=h100: how many? write NAME:COUNT, as h100:16"),
        (["--target=h100:12", "--config=pro"], "hosts have 8 GPUs each; use h100:8 or h100:16"),
        (["--target=h100:8", "--config=pro"], "the config is for 16 devices, --target for 8; use --target=h100:16"),
        (["--target=cpu:1", "--config=lite", "--plot=no/where.png"], "--plot=no/where.png: no such folder"),
        (
            ["--target=cpu:8", "--config=lite", f"{DISTRIBUTED}.world_size=8", f"{DISTRIBUTED}.tensor_parallel=3"],
            "world_size: 8 must be a multiple of the product of the parallel sizes, 3 (tensor 3)",
        ),
        (
            [
                "--target=cpu:8",
                "--config=lite",
                f"{DISTRIBUTED}.world_size=8",
                f"{DISTRIBUTED}.data_parallel=8",
                "--config.training.batch_size=12",
            ],
            "training.batch_size: 12 cut in 2 gives 6 sequences, which 8 data-parallel devices cannot share equally",
        ),
        (["--search", "--config=pro"], "apt-jax plan --search: --target=DEVICE:COUNT missing"),
        (["--no-compile", "--target=cpu:8", "--config=lite"], "--no-compile belongs to --search; add that"),
        (["--search", "--show-schedule", "--target=cpu:8"], "--show-schedule and --search do not go together"),
        (["--search", "--plot=a.png", "--target=cpu:8", "--config=lite"], "--plot and --search do not go together"),
        (["--search=0", "--target=cpu:8", "--config=lite"], "argument --search: '0' is not a whole number from 1 up"),
        (
            ["--search", "--target=cpu:7", "--config=lite"],
            "--search: no mesh shares 7 devices among",
        ),
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
