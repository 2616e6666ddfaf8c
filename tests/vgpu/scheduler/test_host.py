"""What the closed form says of layers in host memory, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apt_jax.core.config.schema import Config, DistributedConfig, ModelConfig, TrainingConfig, VgpuConfig
from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.scheduler import estimate
from benchmarks import estimator as benchmark

MODEL = ModelConfig(
    architecture="llama", hidden_size=1024, num_layers=12, num_attention_heads=8, vocab_size=32_000, remat_policy="full"
)
OFFLOADED = [record for name in ("fitting", "validation") for record in benchmark.load(name) if record.get("vgpu")]


def found(offload="none", mode="balanced", *, enabled=True, devices=1, model=MODEL, **training):
    layout = DistributedConfig(strategy="fsdp")
    given = TrainingConfig(batch_size=8, **{"mixed_precision": "bf16", "distributed": layout, **training})
    vgpu = VgpuConfig(**{"enabled": enabled, "mode": mode, "offload": offload})
    return estimate(Config(model=model, training=given, vgpu=vgpu), devices)


@pytest.mark.parametrize("record", OFFLOADED, ids=lambda record: record["name"])
def test_host_bytes_are_the_compilers(record):
    """But for what XLA makes of sharded scales there."""
    ours = estimate(benchmark.config_of(record), record["devices"]).host_bytes
    assert ours == pytest.approx(record["compiled"]["host"], rel=0.02)


def test_cases_of_every_kind():
    records = [record for record in benchmark.load("validation") if record["group"] in ("offload", "weights")]
    assert len(records) >= 8
    assert {record["vgpu"].get("offload") for record in records} == {None, "optimizer", "state", "all"}
    assert {record["training"].get("optimizer", "adamw") for record in records} == {"adamw", "adamw8bit"}


@pytest.mark.parametrize("devices", [1, 8])
def test_the_device_holds_less_the_more_the_host_does(devices):
    kept, slots, state = (found(choice, devices=devices) for choice in ("none", "optimizer", "state"))
    everything = found("all", devices=devices, model=replace(MODEL, remat_policy="offload"))
    held = [each.argument_bytes for each in (kept, slots, state, everything)]
    assert held[0] > held[1] > held[2] == held[3]
    hosts = [each.host_bytes for each in (kept, slots, state, everything)]
    assert 0 == hosts[0] < hosts[1] < hosts[2] < hosts[3]
    assert held[0] - held[2] == hosts[2] - (hosts[2] - hosts[1]) // 2  # gradients there are no arguments
    assert everything.memory_per_gpu < state.memory_per_gpu < kept.memory_per_gpu
    assert "of host memory" in str(everything) and "host" not in str(kept)


def test_what_the_mode_sets_is_counted():
    model = replace(MODEL, remat_policy="none")
    assert found(mode="memory", model=model) == found(enabled=False)
    weights = found(enabled=False, model=replace(MODEL, remat_policy="weights"))
    assert found(mode="balanced", model=model) == weights
    assert weights.memory_per_gpu < found(enabled=False, model=model).memory_per_gpu
    assert found("all", model=model) == found("all", model=replace(MODEL, remat_policy="offload"))
    assert found("auto", mode="full", model=model).host_bytes > 0
    assert found("all", enabled=False).host_bytes == 0  # as long as Virtual Blackwell is off


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: found(model=replace(MODEL, remat_policy="mine"), enabled=False), "unknown remat policy 'mine'"),
        (lambda: found("state", model=replace(MODEL, remat_policy="weights")), "use full or offload"),
        (
            lambda: found(
                "optimizer",
                devices=2,
                gradient_accumulation_steps=2,
                distributed=DistributedConfig(strategy="hybrid", pipeline_parallel=2),
            ),
            "stages keep their layers",
        ),
    ],
)
def test_one_line_says_what_is_wrong(call, words):
    with pytest.raises(ConfigError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
