"""Plans by the TPU compiler, where libtpu is installed: pip install libtpu; no TPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZES = {
    "model.architecture": "llama", "model.hidden_size": 256, "model.intermediate_size": 512, "model.num_layers": 2,
    "model.num_attention_heads": 4, "model.vocab_size": 1024, "data.sequence_length": 128,
    "training.optimizer": "adamw", "training.mixed_precision": "bf16",
}  # fmt: skip
D = "training.distributed"


def plan(target, **values):
    """Exit code and the plan; in a process of its own, as libtpu reads the environment once."""
    options = [f"--config.{key}={value}" for key, value in {**SIZES, **values}.items()]
    command = [sys.executable, "-m", "apt_jax", "plan", "--config=playground", f"--target={target}", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else done.stderr


def test_one_chip():
    code, found = plan("v5e:1", **{"training.batch_size": 8})
    assert code == 0 and found["devices"] == 1


@pytest.mark.parametrize("sizes", [{"fsdp": 16}, {"fsdp": 8, "tensor": 2}], ids=str)
def test_several_hosts_along_a_ring_and_along_a_split_dimension(sizes):
    layout = {f"{D}.{axis}_parallel": size for axis, size in sizes.items()}
    code, found = plan("v5e:16", **{"training.batch_size": 32, f"{D}.strategy": "hybrid", **layout})
    assert code == 0 and {axis: size for axis, size in found["mesh"].items() if size > 1} == sizes
    assert {"all-gather", "all-reduce"} & {traffic["kind"] for traffic in found["traffic"]}


def test_slices():
    layout = {f"{D}.data_parallel": 2, f"{D}.fsdp_parallel": 64, f"{D}.tensor_parallel": 4}
    code, found = plan("v5e:512", **{"training.batch_size": 1024, f"{D}.strategy": "hybrid", **layout})
    assert code == 0 and found["wiring"] == "2 slices of 16x16" and found["levels"]["data"] == "data centre"
    assert any("across slices are not counted" in warning for warning in found["warnings"])


def test_a_shape_that_no_slice_has():
    code, line = plan("v5e:3x3")
    assert code != 0 and "the compiler refuses one slice of 3x3" in line
