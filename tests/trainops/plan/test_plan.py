"""Plans compiled for simulated CPU devices: what they say is what the compiler and the shardings say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from apt_jax.core.config import parse_command_line
from apt_jax.core.errors import AptError
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.distributed.report import report_shardings
from apt_jax.trainops.plan import compile_step, make_plan, render
from apt_jax.trainops.plan.changes import Shortage, candidates, try_changes
from apt_jax.trainops.plan.compiled import allocated
from apt_jax.trainops.plan.make import read_plan
from apt_jax.trainops.plan.memory import CAUSES
from apt_jax.vgpu.scheduler import parse_target

PLUGINS = load_plugins(disabled=("*",))
D = "training.distributed"
SIZES = {
    "model.architecture": "llama", "model.hidden_size": 64, "model.intermediate_size": 128, "model.num_layers": 4,
    "model.num_attention_heads": 4, "model.vocab_size": 512, "data.sequence_length": 64, "training.batch_size": 16,
    "training.optimizer": "adamw", "training.mixed_precision": "fp32",
}  # fmt: skip
LAYOUTS = {
    "one": ("cpu:1", {}),
    "fsdp": ("cpu:8", {f"{D}.strategy": "fsdp", "training.gradient_accumulation_steps": 2}),
    "tensor": ("cpu:4", {f"{D}.strategy": "hybrid", f"{D}.data_parallel": 2, f"{D}.tensor_parallel": 2}),
    "pipe": (
        "cpu:4",
        {f"{D}.strategy": "hybrid", f"{D}.data_parallel": 2, f"{D}.pipeline_parallel": 2,
         "training.gradient_accumulation_steps": 4},
    ),
}  # fmt: skip


def config_of(values):
    given = {**SIZES, **values}
    options = [f"--config.{key}={value}" for key, value in given.items()]
    return parse_command_line(["--config=playground", *options]).validated


@pytest.fixture(scope="module")
def compiled():
    """Compiles each layout once."""
    known = {}

    def one(name):
        if name not in known:
            text, values = LAYOUTS[name]
            known[name] = compile_step(config_of(values), PLUGINS, parse_target(text, PLUGINS))
        return known[name]

    return one


@pytest.mark.parametrize(
    ("vendor", "peak", "host", "expected"),
    [("nvidia", 300, 0, 250), ("tpu", 300, 0, 200), ("tpu", 340, 40, 240), ("tpu", 900, 500, 250), ("tpu", 90, 0, 0)],
)
def test_temporaries_of_a_tpu_are_its_peak(vendor, peak, host, expected):
    analysis = SimpleNamespace(
        argument_size_in_bytes=100, output_size_in_bytes=90, alias_size_in_bytes=90, temp_size_in_bytes=250,
        generated_code_size_in_bytes=7, host_argument_size_in_bytes=host, peak_memory_in_bytes=peak,
        host_temp_size_in_bytes=5,
    )  # fmt: skip
    found = allocated(analysis, 0, vendor)
    assert (found.arguments, found.temporaries, found.host) == (100, expected, host + 5)
    assert found.total == 100 + expected + 7


@pytest.mark.parametrize("name", LAYOUTS)
def test_figures_agree_with_each_other(compiled, name):
    done = compiled(name)
    plan, program = read_plan(done), done.setup.program
    assert sum(part.bytes for part in plan.parts.values()) == plan.allocated.total
    assert all(part.bytes > 0 for part in plan.parts.values()) and set(plan.parts) <= set(CAUSES)

    state = program.abstract_state()
    report = report_shardings(program.strategy, state.opt_state)
    assert plan.parts["parameters"].bytes == report.per_device.parameters
    assert plan.parts["optimizer"].bytes == report.per_device.optimizer
    assert plan.parts["parameters"].origin == "exact" and plan.parts["gradients"].origin == "compiler"
    # Gradients exist at the peak, of at least one set as they are summed up.
    assert plan.parts["gradients"].bytes >= 0.5 * report.per_device.gradients

    assert plan.fits and "compiles and fits" in plan.verdict
    assert plan.flops.counted and plan.flops.device * plan.devices >= 0.9 * plan.flops.model
    assert plan.flops.device * plan.devices <= 2.5 * plan.flops.model
    assert 0 < plan.bounds.mfu <= 1
    text = render(plan)
    assert max(map(len, text.splitlines())) <= 120 and "runs" not in text


def test_arguments_are_exact(compiled):
    done = compiled("fsdp")
    program = done.setup.program
    trees = program.abstract_state(), program.abstract_batch(done.length)
    shards = sum(jax.numpy.zeros(x.sharding.shard_shape(x.shape), x.dtype).nbytes for x in jax.tree.leaves(trees))
    assert done.allocated.arguments == shards


def test_axes_and_collectives(compiled):
    plan = read_plan(compiled("tensor"))
    assert plan.levels == {"data": "process", "tensor": "process"}
    assert {t.axes for t in plan.traffic} >= {("data",), ("tensor",)}
    assert read_plan(compiled("one")).traffic == () and read_plan(compiled("one")).bounds.network == 0
    pipe = read_plan(compiled("pipe"))
    assert ("collective-permute", ("pipe",)) in {(t.kind, t.axes) for t in pipe.traffic}
    assert pipe.bounds.bubble == pytest.approx(1 / 5)  # (P - 1) / (M + P - 1)


def test_json_has_everything(compiled):
    report = read_plan(compiled("fsdp")).to_json()
    assert report["mesh"]["fsdp"] == 8 and report["verdict"].startswith("compiles")
    assert {"parts", "flops", "traffic", "bounds", "warnings", "allocated", "total", "fits"} <= set(report)


def test_recomputing_is_seen(compiled):
    kept = read_plan(compiled("one"))
    full = make_plan(config_of({"model.remat_policy": "full"}), PLUGINS, parse_target("cpu:1", PLUGINS))
    assert full.parts["saved_activations"].bytes < 0.5 * kept.parts["saved_activations"].bytes
    assert full.flops.device > 1.1 * kept.flops.device and full.flops.model == kept.flops.model


def test_changes_are_tried_until_one_fits(compiled):
    config = config_of({})
    plan = read_plan(compiled("one"))
    options = [change.options for change in candidates(plan, config, parse_target("cpu:1", PLUGINS))]
    assert options[0] == ("--config.training.gradient_accumulation_steps=2",)
    assert ("--config.model.remat_policy=full",) in options
    remat = [option[0].rpartition("=")[2] for option in options if len(option) == 1 and "remat" in option[0]]
    assert remat == ["weights", "attention", "full"]
    assert "--config.vgpu.offload=all" in options[-2] and set(options[-2]) < set(options[-1])
    assert not any("offload" in option for given in options[:-2] for option in given)
    saved = plan.parts["saved_activations"].bytes // 4
    small = replace(parse_target("cpu:1", PLUGINS))
    device = replace(small.device, memory_bytes=plan.allocated.total - saved)
    tight = replace(plan, capacity=device.memory_bytes)
    assert not tight.fits and "does not fit by" in tight.verdict
    tried = try_changes(tight, config, PLUGINS, replace(small, device=device))
    assert tried[-1].fits and tried[-1].total <= device.memory_bytes
    text = render(replace(tight, remedies=tried))
    assert "changes tried by the compiler" in text and tried[-1].changes[0] in text
    many = replace(tried[-1], changes=tuple(f"--config.training.distributed.fsdp_parallel={i}" for i in range(5)))
    assert max(map(len, render(replace(tight, remedies=(many,))).splitlines())) <= 120


def test_changes_by_the_closed_form_are_those_of_the_plan(compiled):
    config, target = config_of(LAYOUTS["tensor"][1]), parse_target("cpu:4", PLUGINS)
    plan = read_plan(compiled("tensor"))
    small = replace(target, device=replace(target.device, memory_bytes=1000))
    shortage = Shortage.of(config, small)
    assert shortage.mesh == plan.mesh and 0 < shortage.excess < plan.allocated.total
    assert shortage.parts["parameters"].bytes == plan.parts["parameters"].bytes
    given = [change.options for change in candidates(shortage, config, target)]
    assert given == [change.options for change in candidates(plan, config, target)]


def test_another_number_of_devices_is_named():
    with pytest.raises(AptError, match=r"the config is for 4 devices, --target for 8; use --target=cpu:4"):
        make_plan(config_of({f"{D}.world_size": 4}), PLUGINS, parse_target("cpu:8", PLUGINS))


def test_the_persistent_cache_is_left_alone(compiled, tmp_path):
    """A program that came from the cache would say nothing of its buffers."""
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        reset_cache()
        compiled("one").setup.program.train_step.lower(
            compiled("one").setup.program.abstract_state(), compiled("one").setup.program.abstract_batch(64)
        ).compile()
        filled = len([*tmp_path.iterdir()])
        again = compile_step(config_of({}), PLUGINS, parse_target("cpu:1", PLUGINS))
        assert filled and again.peak and len([*tmp_path.iterdir()]) == filled
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


def test_auto_precision_is_the_targets(compiled):
    done = compile_step(config_of({"training.mixed_precision": "auto"}), PLUGINS, parse_target("cpu:1", PLUGINS))
    assert done.setup.dtype == "float32"


@pytest.mark.gpu_compile
def test_a_plan_for_h100():
    values = {f"{D}.strategy": "fsdp", "training.mixed_precision": "auto"}
    plan = make_plan(config_of(values), PLUGINS, parse_target("h100:16", PLUGINS))
    assert plan.precision == "bf16" and plan.bounds.dtype == "bf16" and plan.fits
    assert sum(part.bytes for part in plan.parts.values()) == plan.allocated.total
    assert plan.levels == {"fsdp": "InfiniBand"} and set(plan.bounds.by_link) == {"NVLink", "InfiniBand"}
    assert plan.flops.counted
