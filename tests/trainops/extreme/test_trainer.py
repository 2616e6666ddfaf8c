"""Plans compiled in this process and in another, runs, and what is said where neither is possible."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace

import jax
import pytest

from apt_jax.core.errors import AptError
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.engine import ExtremeScaleTrainer
from apt_jax.trainops.extreme import compile as compiling
from apt_jax.trainops.extreme.reliability import Faults
from apt_jax.trainops.extreme.trainer import missing_devices
from apt_jax.trainops.plan import PlanError, make_plan
from apt_jax.vgpu.scheduler import parse_target

PLUGINS = load_plugins(disabled=("*",))
TINY = {
    "model.architecture": "llama", "model.hidden_size": 64, "model.intermediate_size": 128, "model.num_layers": 1,
    "model.num_attention_heads": 4, "model.vocab_size": 512, "model.max_position_embeddings": 64,
    "training.optimizer": "adamw", "plugins.disabled": ("*",),
}  # fmt: skip
AXES = {"data": 2, "fsdp": 2, "tensor": 2}


def make(world_size, axes, **options):
    overrides = {**TINY, **options.pop("overrides", {})}
    given = {"device": "cpu", "plugins": PLUGINS, "model": "playground", "batch_size": 16, **options}
    return ExtremeScaleTrainer(world_size=world_size, parallelism_config=axes, overrides=overrides, **given)


@pytest.fixture(scope="module")
def small():
    trainer = make(8, AXES, faults=Faults(mtbf_hours=10.0, checkpoint_seconds=5.0))
    return trainer, trainer.plan()


def test_a_plan_of_the_real_step(small):
    trainer, found = small
    plan = found.plan
    assert plan.mesh == trainer.sizes and plan.fits and found.fits and found.advice == ""
    assert (plan.devices, plan.batch_size, plan.target) == (8, 16, "cpu:8")
    assert {place.axis: place.link for place in found.placement.axes} == dict(plan.levels)


def test_failures_are_those_of_the_plan(small):
    _, found = small
    reckoned, plan = found.reliability, found.plan
    assert reckoned.devices == 8 and reckoned.writers == 4
    state = plan.parts["parameters"].bytes + plan.parts["optimizer"].bytes
    assert reckoned.state_bytes == 4 * state
    # Three norm scales are whole on all four devices, each with two moments; so are the optimizer's counters.
    exact = 12 * plan.num_params
    assert exact <= reckoned.state_bytes <= exact + 3 * 12 * 64 * 3 + 4 * 64
    assert reckoned.expected.mtbf == 10 * 3600 / 8 and reckoned.step_seconds == plan.bounds.bound


def test_text_and_json(small):
    _, found = small
    text = str(found)
    assert max(map(len, text.splitlines())) <= 120
    assert "placement, from the inside: process joins all" in text
    assert "failures, any of 8 devices ending the job: 10 device-hours each, one every 75 min" in text
    assert "checkpoint       5 s  for" in text and ": as given" in text
    assert text.endswith(f"cpu:8: {found.plan.verdict}") and " runs" not in text
    report = json.loads(json.dumps(found.to_json()))
    assert report["fits"] and report["plan"]["mesh"]["tensor"] == 2
    assert report["placement"]["axes"][0]["axis"] == "tensor"
    assert 0 < report["reliability"]["goodput"] < 1 and report["reliability"]["save_interval"] >= 1


def test_what_does_not_fit_comes_with_what_does(small, monkeypatch):
    trainer, found = small
    short = replace(found.plan, capacity=found.plan.allocated.total - 1)
    monkeypatch.setattr(compiling, "compile_plan", lambda *a: short)
    tight = trainer.plan()
    assert not tight.fits and math.prod(map(int, re.findall(r"\d+", tight.advice))) == 8
    assert str(tight).endswith(f"by the closed form this would fit: {tight.advice}")


def test_another_process_compiles_the_same(small):
    trainer, found = small
    here = make_plan(trainer.config, PLUGINS, trainer.target)
    assert found.plan == replace(here, seconds=found.plan.seconds)


def test_more_devices_than_this_process_has(small):
    _, few = small
    plan = make(16, {**AXES, "data": 4}).plan().plan
    assert plan.devices == 16 and plan.mesh["data"] == 4 and jax.device_count() == 8
    assert plan.parts["parameters"] == few.plan.parts["parameters"]


@pytest.mark.parametrize(
    ("platforms", "target", "here"),
    [("cpu", "h100:16", True), ("cpu", "cpu:8", False), (None, "h100:16", False), ("cuda,cpu", "h100:16", False)],
)
def test_where_a_plan_is_compiled(platforms, target, here):
    given = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", platforms)
        assert compiling.can_compile_here(parse_target(target, PLUGINS)) == here
    finally:
        jax.config.update("jax_platforms", given)


def test_errors_come_back_from_the_other_process():
    trainer = make(8, AXES)
    odd = replace(trainer.config, model=replace(trainer.config.model, vocab_size=511))
    for make_it in (make_plan, compiling.compile_elsewhere):
        with pytest.raises(AptError, match=r"^parameter .* 511") as caught:
            make_it(odd, PLUGINS, trainer.target)
        assert "\n" not in str(caught.value)


def test_other_plugins_in_the_other_process_are_named(tmp_path):
    text = 'from apt_jax import hookimpl\napt_jax_api = "1"\n@hookimpl\ndef apt_losses():\n    return {}\n'
    (tmp_path / "extra.py").write_text(text)
    trainer = make(8, AXES)
    with pytest.raises(PlanError, match=r"which loads other plugins: .*extra.*; name them in the "):
        compiling.compile_elsewhere(trainer.config, load_plugins(plugins_dir=tmp_path), trainer.target)


def test_a_death_of_the_other_process_is_one_line(monkeypatch):
    trainer = make(8, AXES)

    def end(code):
        return lambda *a, **k: subprocess.CompletedProcess(a, code, b"", b"warning\nterminate called: boom\n\n")

    for code, message in ((-9, "was killed, as happens where memory runs out"), (3, "ended with 3: terminate called")):
        monkeypatch.setattr(compiling.subprocess, "run", end(code))
        with pytest.raises(PlanError, match=message):
            compiling.compile_elsewhere(trainer.config, PLUGINS, trainer.target)


def test_it_trains_where_the_devices_are(tmp_path):
    training = {
        "training.max_steps": 12, "training.warmup_steps": 1, "training.learning_rate": 3e-3,
        "training.eval_interval": 0, "training.sample_tokens": 0, "data.hlbd_samples": 60,
        "monitoring.metrics_interval": 1, "monitoring.console": "off", "monitoring.plot": False,
        "monitoring.tensorboard": False, "checkpoints.async_save": False,
    }  # fmt: skip
    trainer = make(8, AXES, overrides=training)
    report = trainer.train(workdir=tmp_path / "run")
    assert report["status"] == "finished"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) >= 12 and losses[-1] < 0.9 * losses[0]
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["training"]["distributed"]["tensor_parallel"] == 2
    assert trainer.model is not None


@pytest.mark.parametrize(
    ("world_size", "options", "message"),
    [
        (16, {}, "world_size 16 of simulated CPU device: this machine has 8 cpu devices; set XLA_FLAGS=.*_count=16 "),
        (8, {"device": "h100"}, "world_size 8 of NVIDIA H100 80GB HBM3: this machine has 8 cpu devices; start it on a"),
        (
            100_000, {"device": "h100", "batch_size": 100_000},
            r"world_size 100,000 of .* has 8 cpu devices; start the same script once on each of 12,500 hosts, as "
            r"`srun --nodes=12500 --ntasks-per-node=1 python SCRIPT`, or with APT_COORDINATOR_ADDRESS, APT_NUM_PRO",
        ),
    ],
)  # fmt: skip
def test_elsewhere_it_says_what_is_missing(world_size, options, message):
    with pytest.raises(AptError, match=message) as caught:
        make(world_size, {"data": world_size}, **{"batch_size": world_size, **options}).train()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".plan() needs none of them")


def test_all_processes_count():
    class Gpu:
        platform = "gpu"

    target = parse_target("h100:16", PLUGINS)
    assert missing_devices(target, [Gpu()] * 16, 2) == ""
    assert "the 2 processes of this job have 15 gpu devices" in missing_devices(target, [Gpu()] * 15, 2)


def test_public_names():
    import apt_jax.trainops.engine as engine
    import apt_jax.trainops.extreme as extreme

    assert engine.ExtremeScaleTrainer is extreme.ExtremeScaleTrainer
    assert all(getattr(extreme, name) is not None for name in extreme.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'ExtremeTrainer'"):
        _ = extreme.ExtremeTrainer


def test_checking_sizes_needs_no_jax():
    code = (
        "import sys; from apt_jax.trainops.extreme import ExtremeScaleTrainer; "
        "ExtremeScaleTrainer('175B', 99_968); sys.exit('jax' in sys.modules)"
    )
    environment = {**os.environ, "APT_JAX_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.gpu_compile
@pytest.mark.timeout(1200)
def test_a_step_for_100_000_h100():
    """In a process of its own, to see what that takes. 100,000 devices cut this model too little; 99,968 enough."""
    axes = {"data": 3125, "fsdp": 4, "tensor": 8}
    trainer = ExtremeScaleTrainer("175B", 100_000, axes, plugins=PLUGINS, overrides={"plugins.disabled": ("*",)})
    start = time.perf_counter()
    plan = compiling.compile_elsewhere(trainer.config, PLUGINS, trainer.target)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{time.perf_counter() - start:.0f} s, {peak:.1f} GiB")
    assert plan.devices == 100_000 and plan.precision == "bf16"
    assert plan.levels == {"data": "InfiniBand", "fsdp": "InfiniBand", "tensor": "NVLink"}
    assert not plan.fits and plan.allocated.total > 90 * 2**30
    assert plan.parts["parameters"].bytes == pytest.approx(4 * plan.num_params / 32, rel=0.001)
    assert {each.kind for each in plan.traffic} >= {"all-reduce", "all-gather"} and plan.flops.counted
