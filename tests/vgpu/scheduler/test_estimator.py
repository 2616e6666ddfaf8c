"""The closed form against the compiler's figures, and the public API around it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.core.config.schema import Config, DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.core.errors import AptError, ConfigError
from apt_jax.vgpu.scheduler import VGPUResourceEstimator, estimate, quick_estimate
from apt_jax.vgpu.scheduler.estimator import usable
from apt_jax.vgpu.scheduler.sizes import model_of_size
from benchmarks import estimator as benchmark
from benchmarks.estimator_cases import fitting, validation

RECORDS = benchmark.load("validation")
MODEL = ModelConfig(architecture="llama", vocab_size=32_000, max_position_embeddings=512, remat_policy="full")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
def test_close_to_the_compiler(record):
    row = benchmark.compare(record)
    assert abs(row["error"]) <= 0.10, f"{row['ours']:,} bytes, compiled {row['compiled']:,}"


@pytest.mark.parametrize("record", RECORDS + benchmark.load("fitting"), ids=lambda record: record["name"])
def test_argument_bytes_are_exact(record):
    compiled, ours = benchmark.compare(record)["arguments"]
    assert ours == compiled


def test_the_median_is_within_three_percent():
    assert median(abs(benchmark.compare(record)["error"]) for record in RECORDS) <= 0.03


def test_what_is_validated_was_not_fitted():
    assert len(RECORDS) >= 40
    assert not {json.dumps(case.model) for case in fitting()} & {json.dumps(case.model) for case in validation()}
    names = [case.name for case in (*fitting(), *validation())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("split", ["fitting", "validation", "tpu"])
def test_fixtures_belong_to_the_cases(split):
    cases = {case.name: case for case in benchmark.cases(split)}
    for record in benchmark.load(split):
        case = cases[record["name"]]
        assert (record["model"], record["training"], record["distributed"], record["devices"], record["target"]) == (
            case.model, case.training, case.distributed, case.devices, case.target,
        )  # fmt: skip


def test_tpus_are_a_group_of_their_own():
    """The form is made for GPUs: on a TPU only its arguments are right, to the padding of tiles."""
    assert all(record["target"] == "h100" for record in RECORDS)
    records = benchmark.load("tpu")
    assert records and all(record["target"][0] == "v" for record in records)
    for record in records:
        row = benchmark.compare(record)
        compiled, ours = row["arguments"]
        assert ours <= compiled <= 1.001 * ours
        assert record["compiled"]["peak"] >= row["compiled"] > compiled


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", [RECORDS[0]["name"], RECORDS[-1]["name"]])
def test_stored_figures_are_what_the_compiler_says(name):
    record = next(record for record in RECORDS if record["name"] == name)
    code = (
        "import json, benchmarks.estimator as b\n"
        f"case = next(c for c in b.validation() if c.name == {name!r})\n"
        "print(json.dumps(b.compile_case(case)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == record["compiled"]


def test_no_jax_and_at_once():
    code = (
        "import sys, time\n"
        "from apt_jax.vgpu.scheduler import quick_estimate\n"
        "quick_estimate(model_size='7B', batch_size=8)\n"
        "start = time.perf_counter()\n"
        "quick_estimate(model_size='175B', batch_size=32)\n"
        "print(time.perf_counter() - start, 'jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, jax_imported = out.split()
    assert jax_imported == "False"
    assert float(seconds) < 0.5  # 0.03 s on a quiet machine


def test_as_the_documents_show_it():
    found = quick_estimate(model_size="175B", batch_size=32)
    assert found.num_gpus >= 32
    assert found.memory_per_gpu == sum(found.breakdown.values()) <= usable(80)
    mesh = {axis: size for axis, size in found.parallelism.items() if axis != "microbatches"}
    assert found.num_gpus == _product(mesh.values())
    assert found.num_params == pytest.approx(175e9, rel=0.02)
    assert {"parameters", "optimizer", "gradients", "saved activations"} <= set(found.breakdown)
    assert f"{found.num_gpus} GPUs" in str(found)
    config = model_of_size("7B")
    assert quick_estimate(config, batch_size=8) == quick_estimate(model_size="7B", batch_size=8)
    assert VGPUResourceEstimator().estimate(config, batch_size=8) == quick_estimate(config, batch_size=8)


def test_fewer_gpus_would_not_do():
    found = quick_estimate(model_size="13B", batch_size=32)
    half = quick_estimate(model_size="13B", batch_size=32, num_gpus=found.num_gpus // 2)
    assert found.fits() and not half.fits()
    assert quick_estimate(model_size="13B", batch_size=32, gpu_memory_gb=24).num_gpus > found.num_gpus


def test_a_device_by_name():
    code = (
        "import sys\n"
        "from apt_jax.vgpu.scheduler import quick_estimate\n"
        "sizes = [quick_estimate('7B', batch_size=32, gpu=gpu).num_gpus for gpu in ('rtx3090', 'h100', 'h200')]\n"
        "print(sizes == sorted(sizes, reverse=True), sizes[0] > sizes[-1], 'jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "True", "False"]
    with pytest.raises(AptError, match="h1000"):
        quick_estimate("7B", batch_size=8, gpu="h1000")


@pytest.mark.parametrize("size", ["20M", "350M", "1.5B", "7B", "13B", "70B", "175B", "1T"])
def test_sizes_are_met(size):
    unit = {"M": 1e6, "B": 1e9, "T": 1e12}[size[-1]]
    counted = quick_estimate(model_size=size, batch_size=1, num_gpus=1).num_params
    assert counted == pytest.approx(float(size[:-1]) * unit, rel=0.05)


def test_what_remat_and_precision_do():
    sizes = [
        quick_estimate("1.5B", batch_size=8, num_gpus=8, remat_policy=policy).memory_per_gpu
        for policy in ("full", "attention", "dots", "none")
    ]
    assert sizes == sorted(sizes)
    fp32 = quick_estimate("1.5B", batch_size=8, num_gpus=8, mixed_precision="fp32")
    assert fp32.memory_per_gpu > sizes[0]


def test_batch_recommendation():
    estimator = VGPUResourceEstimator(24)
    batches = estimator.recommend_batch_size("gpt2-medium")
    assert batches == tuple(sorted(batches)) and 1 <= len(batches) <= 3
    assert quick_estimate("gpt2-medium", batch_size=batches[-1], num_gpus=1).fits(24)
    assert max(estimator.recommend_batch_size("gpt2-medium", vram_gb=80)) > batches[-1]
    assert max(estimator.recommend_batch_size("gpt2-medium", num_gpus=8)) > batches[-1]
    assert estimator.recommend_batch_size("70B") == ()


def test_memory_by_the_platforms_names():
    found = VGPUResourceEstimator().estimate_transformer(model_of_size("gpt2-small"), batch_size=8)
    parts = found.parameters, found.gradients, found.optimizer_states, found.activations
    assert found.total_train == sum(parts)
    assert min(parts) > 0
    assert found.total_inference * 2 == found.parameters


@settings(deadline=None)
@given(
    layers=st.integers(1, 8),
    rows=st.integers(1, 8),
    length=st.sampled_from([128, 256, 512]),
    remat=st.sampled_from(["none", "full", "dots", "attention"]),
    devices=st.sampled_from([1, 2, 4]),
    strategy=st.sampled_from(["ddp", "fsdp", "zero1", "zero2"]),
)
def test_more_never_needs_less(layers, rows, length, remat, devices, strategy):
    def memory(**changes):
        sizes = {"layers": layers, "rows": rows, "length": length, **changes}
        model = replace(MODEL, num_layers=sizes["layers"], max_position_embeddings=sizes["length"], remat_policy=remat)
        layout = DistributedConfig(strategy=strategy)
        training = TrainingConfig(
            batch_size=sizes["rows"] * devices, mixed_precision="bf16", loss_chunk=128, distributed=layout
        )
        return estimate(Config(model=model, training=training), devices).memory_per_gpu

    base = memory()
    assert memory(layers=layers + 1) > base
    assert memory(rows=2 * rows) > base
    assert memory(length=2 * length) > base


@settings(deadline=None)
@given(st.sampled_from(["350M", "1.5B", "7B", "30B"]), st.sampled_from([8, 16, 32, 64]))
def test_a_larger_gpu_never_needs_more_of_them(size, batch):
    assert (
        quick_estimate(size, batch_size=batch, gpu_memory_gb=160).num_gpus
        <= quick_estimate(size, batch_size=batch, gpu_memory_gb=80).num_gpus
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quick_estimate(), "give either a model config or model_size"),
        (lambda: quick_estimate(model_size="huge"), "such as '175B'"),
        (lambda: quick_estimate(model_size="1K"), "from 1M to 100T"),
        (lambda: quick_estimate(model_size="100T", batch_size=1), "raise batch_size"),
        (lambda: quick_estimate(replace(MODEL, vocab_size=None)), "model.vocab_size"),
        (lambda: quick_estimate(replace(MODEL, architecture="mamba")), "architecture"),
        (lambda: quick_estimate("7B", mixed_precision="fp4"), "fp4"),
        (lambda: quick_estimate("7B", optimizer="lion"), "lion"),
        (lambda: quick_estimate("7B", batch_size=3, num_gpus=7), "make batch_size a multiple"),
        (lambda: estimate(Config(model=MODEL, training=_training(batch_size=3)), 2), "share equally"),
        (lambda: estimate(Config(model=MODEL, training=_training(tensor_parallel=3)), 4), "make the product equal"),
    ],
)
def test_one_line_says_what_is_wrong(call, words):
    with pytest.raises(ConfigError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_table_is_printed(capsys):
    started = time.perf_counter()
    benchmark.main([])
    assert time.perf_counter() - started < 10
    printed = capsys.readouterr().out
    assert all(record["name"] in printed for record in RECORDS)
    assert "accelerate" in printed and "argument bytes exact" in printed


def _training(batch_size=16, **sizes):
    return TrainingConfig(batch_size=batch_size, distributed=DistributedConfig(strategy="ddp", **sizes))


def _product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result
