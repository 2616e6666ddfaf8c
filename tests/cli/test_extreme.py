"""`apt-jax extreme`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from apt_jax.cli import main

TINY = [
    "--model=playground", "--device=cpu", "--world-size=2", "--parallelism=data=1,fsdp=1,tensor=2",
    "--config.model.num_layers=1", "--config.model.hidden_size=32", "--config.model.intermediate_size=64",
    "--config.model.vocab_size=128", "--config.model.num_attention_heads=2",
    "--config.training.optimizer=adamw",
]  # fmt: skip


def test_text_and_json(capsys, monkeypatch):
    assert main(["extreme", *TINY, "--mtbf=100", "--restart=60", "--storage=1", "--device-storage=0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["reliability"]["faults"] == {
        "mtbf_hours": 100.0, "restart_seconds": 60.0, "device_bandwidth": 5e8, "storage_bandwidth": 1e9,
        "checkpoint_seconds": None,
    }  # fmt: skip
    assert report["plan"]["mesh"]["tensor"] == 2 and report["fits"]

    from apt_jax.trainops.extreme import ExtremeScaleTrainer

    class Answer:
        fits = False

        def __str__(self):
            return "the plan"

    monkeypatch.setattr(ExtremeScaleTrainer, "plan", lambda self: Answer())
    assert main(["extreme", *TINY]) == 1
    assert capsys.readouterr().out == "the plan\n"


def test_the_missing_compiler_is_named(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "jax_cuda13_plugin" else find(name, *a)
    )
    assert main(["extreme", "--model=175B", "--world-size=99968"]) == 2
    out = capsys.readouterr()
    assert "--target=h100:99968: no compiler for NVIDIA H100 80GB HBM3 is installed; pip install" in out.err
    assert out.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world-size=8"], "the following arguments are required: --model"),
        (["--model=7B", "--world-size=8", "--paralelism=data=8"], "unrecognized arguments: --paralelism=data=8"),
        (["--model=7B", "--world-size=8", "--parallelism=data:8"], "'data:8' is not AXIS=N, as data=3125,tensor=8"),
        (["--model=7B", "--world-size=8", "--parallelism=data=8,data=8"], "data is given twice"),
        (["--model=7B", "--world-size=8", "--parallelism=data=many"], "data: 'many' is not a whole number from 1 up"),
        (["--model=7B", "--world-size=8", "--config.model.hidden_siz=8"], "unknown key (did you mean 'hidden_size'?)"),
        (["--model=7B", "--world-size=8k"], "argument --world-size: '8k' is not a whole number from 1 up"),
        (["--model=175B", "--world-size=100000"], "no layout of 175B fits 100,000 × h100"),
        (["--model=7B", "--world-size=8", "--mtbf=0"], "mtbf_hours: 0 must be above 0, and finite"),
    ],
)
def test_mistakes(options, message, capsys):
    assert main(["extreme", *options]) == 2
    out = capsys.readouterr()
    assert out.out == "" and message in out.err
    assert out.err.startswith("apt-jax: error: ") and out.err.count("\n") == 1


def test_help_and_mistakes_import_no_jax():
    code = (
        "import sys; from apt_jax.cli import main; main(['extreme', '--model=7B', '--world-size=x']); "
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 1
