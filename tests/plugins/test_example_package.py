"""The example package, built and unpacked as an installer would, used through the public command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugins" / "apt-jax-example"
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages that holds the example and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=PACKAGE, capture_output=True, text=True, check=True
    )
    site = folder / "site"
    with zipfile.ZipFile(folder / done.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
    return site


def run(site, *arguments, **environment):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), **environment}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=site.parent, env=env, capture_output=True, text=True
    )


def test_the_wheel_holds_the_module_alone(site):
    names = {path.name for path in site.iterdir()}
    assert names == {"apt_jax_example.py", "apt_jax_example-0.1.0.dist-info"}
    assert len((site / "apt_jax_example.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_it_is_listed(site):
    done = run(site, "apt_jax", "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    found = {info["name"]: info for info in json.loads(done.stdout)}["example"]
    assert found["status"] == "loaded"
    assert (found["dist"], found["version"], found["origin"]) == ("apt-jax-example", "0.1.0", "installed")
    assert found["hooks"] == ["apt_architectures", "apt_loss_terms", "apt_step_end", "apt_train_end"]
    assert len(found["file_sha256"]) == 64


@pytest.mark.parametrize("text", ["-example", "none"])
def test_it_can_be_left_out(site, text):
    done = run(site, "apt_jax", "plugins", "list", "--json", f"--plugins={text}")
    assert {info["name"]: info["status"] for info in json.loads(done.stdout)}["example"] == "blocked"


def test_it_passes_its_check(site):
    done = run(site, "apt_jax", "plugins", "check", "example")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "example (apt-jax-example (apt_jax_example)): ok" in done.stdout


def test_a_run_uses_all_three_parts(site, tmp_path):
    data = tmp_path / "texts.jsonl"
    lines = (json.dumps({"text": f"the number {i} follows the number {i - 1}"}) for i in range(64))
    data.write_text("\n".join(lines), encoding="utf-8")
    workdir = tmp_path / "run"
    settings = {
        "model.architecture": "example_gated",
        "model.hidden_size": 32,
        "model.num_layers": 1,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 32,
        "model.max_position_embeddings": 32,
        "training.batch_size": 8,
        "training.max_steps": 5,
        "training.warmup_steps": 1,
        "training.sample_tokens": 0,
        "training.eval_interval": 0,
        "data.source": "jsonl",
        "data.path": str(data),
        "checkpoints.save_interval": 0,
        "monitoring.metrics_interval": 1,
        "monitoring.plot": False,
        "monitoring.tensorboard": False,
        "extensions": "{'example': {'confidence_penalty': 0.05}}",
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    train = ("--config=playground", f"--workdir={workdir}", "--plugins=example", *flags)
    # Through the tracer, which runs the same training entry and reports the hook calls.
    done = run(site, "apt_jax", "plugins", "trace", "--", *train, XLA_FLAGS="")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((workdir / "example.json").read_text(encoding="utf-8"))
    metrics = [
        json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    steps = [row for row in metrics if "loss" in row]
    assert summary == {"steps": 5, "lowest": min(row["loss"] for row in steps)}
    assert all(row["confidence_penalty"] < 0 for row in steps)
    traced = {tuple(line.split()[:3]) for line in done.stdout.splitlines()}
    assert {("apt_step_end", "example", "5"), ("apt_architectures", "example", "1")} <= traced


@pytest.mark.slow
def test_its_own_tests_pass(site):
    done = run(
        site, "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(PACKAGE / "tests")
    )
    assert done.returncode == 0, done.stdout
