"""Strategies become sizes of mesh axes; what is given is kept; what does not fit is named."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_jax.core.config.rules import STRATEGIES
from apt_jax.core.config.schema import DistributedConfig, ModelConfig
from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import AUTO_FSDP, AUTO_LARGEST, AUTO_PIPELINE, AUTO_TENSOR, MESH_AXES, resolve_layout

SMALL, LARGE = 10**6, 5 * 10**9
BIG_MODEL = ModelConfig(hidden_size=4096, num_layers=48, num_attention_heads=64, intermediate_size=16_384)


def used(layout):
    """The axes of more than one device."""
    return {axis: size for axis, size in layout.sizes.items() if size > 1}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DistributedConfig(strategy="ddp"), {"data": 8}),
        (DistributedConfig(strategy="fsdp"), {"fsdp": 8}),
        (DistributedConfig(strategy="zero1"), {"fsdp": 8}),
        (DistributedConfig(strategy="zero2"), {"fsdp": 8}),
        (DistributedConfig(strategy="zero3"), {"fsdp": 8}),
        (DistributedConfig(strategy="tensor"), {"tensor": 8}),
        (DistributedConfig(strategy="sequence"), {"tensor": 8}),
        (DistributedConfig(strategy="pipeline"), {"pipe": 8}),
        (DistributedConfig(strategy="expert"), {"expert": 8}),
        (DistributedConfig(strategy="context"), {"context": 8}),
        (DistributedConfig(strategy="hybrid"), {"data": 8}),
        (DistributedConfig(strategy="ddp", world_size=2), {"data": 2}),
        # A size that is given is kept; the strategy's own axis takes what is left, else data or fsdp do.
        (DistributedConfig(strategy="tensor", tensor_parallel=2), {"tensor": 2, "data": 4}),
        (DistributedConfig(strategy="tensor", data_parallel=2), {"tensor": 4, "data": 2}),
        (DistributedConfig(strategy="sequence", fsdp_parallel=2), {"tensor": 4, "fsdp": 2}),
        (DistributedConfig(strategy="pipeline", tensor_parallel=2), {"pipe": 4, "tensor": 2}),
        (DistributedConfig(strategy="expert", expert_parallel=4), {"expert": 4, "data": 2}),
        (DistributedConfig(strategy="context", context_parallel=2, fsdp_parallel=4), {"context": 2, "fsdp": 4}),
        (DistributedConfig(strategy="fsdp", tensor_parallel=2), {"tensor": 2, "fsdp": 4}),
        (DistributedConfig(strategy="fsdp", data_parallel=2), {"data": 2, "fsdp": 4}),
        (DistributedConfig(strategy="ddp", fsdp_parallel=2), {"data": 4, "fsdp": 2}),
        (
            DistributedConfig(strategy="hybrid", data_parallel=1, pipeline_parallel=2, tensor_parallel=2),
            {"pipe": 2, "fsdp": 2, "tensor": 2},
        ),
    ],
)
def test_strategies(config, expected):
    layout = resolve_layout(config, 8, LARGE)
    assert used(layout) == expected
    assert tuple(layout.sizes) == MESH_AXES
    assert layout.strategy == config.strategy


def test_zero_stages():
    stages = {s: resolve_layout(DistributedConfig(strategy=s), 8, SMALL).zero_stage for s in STRATEGIES}
    assert stages == {**dict.fromkeys(STRATEGIES, 3), "zero1": 1, "zero2": 2}


def test_sequence_parallelism_needs_a_tensor_axis():
    def is_cut(devices=8, **config):
        return resolve_layout(DistributedConfig(**config), devices, SMALL).sequence_parallel

    assert is_cut(strategy="sequence")
    assert is_cut(strategy="hybrid", tensor_parallel=2, sequence_parallel=True)
    assert not is_cut(strategy="hybrid", tensor_parallel=2)
    assert not is_cut(strategy="ddp", sequence_parallel=True)
    assert not is_cut(strategy="sequence", devices=1)


@pytest.mark.parametrize(
    ("parameters", "devices", "strategy", "expected"),
    [
        (SMALL, 64, "ddp", {"data": 64}),
        (AUTO_FSDP - 1, 64, "ddp", {"data": 64}),
        (AUTO_FSDP, 64, "fsdp", {"fsdp": 64}),
        (AUTO_PIPELINE - 1, 64, "fsdp", {"fsdp": 64}),
        (AUTO_PIPELINE, 64, "fsdp", {"pipe": 2, "fsdp": 32}),
        (AUTO_TENSOR - 1, 64, "fsdp", {"pipe": 2, "fsdp": 32}),
        (AUTO_TENSOR, 64, "fsdp", {"pipe": 4, "fsdp": 2, "tensor": 8}),
        (AUTO_LARGEST - 1, 512, "fsdp", {"pipe": 4, "fsdp": 16, "tensor": 8}),
        (AUTO_LARGEST, 64, "fsdp", {"pipe": 8, "tensor": 8}),
        (AUTO_LARGEST, 1024, "fsdp", {"pipe": 16, "fsdp": 8, "tensor": 8}),
        # Devices that no size above 1 divides stay data-parallel.
        (AUTO_PIPELINE, 7, "fsdp", {"fsdp": 7}),
        (AUTO_TENSOR, 1, "fsdp", {}),
        (AUTO_TENSOR, 6, "fsdp", {"pipe": 3, "tensor": 2}),
    ],
)
def test_auto_goes_by_the_size_of_the_model(parameters, devices, strategy, expected):
    layout = resolve_layout(DistributedConfig(), devices, parameters, BIG_MODEL, microbatches=16)
    assert (layout.strategy, used(layout)) == (strategy, expected)


@pytest.mark.parametrize(
    ("model", "microbatches", "config", "expected"),
    [
        (ModelConfig(num_layers=47, num_attention_heads=64, intermediate_size=512), 16, {}, {"fsdp": 8, "tensor": 8}),
        (
            ModelConfig(num_layers=48, num_attention_heads=64, num_key_value_heads=2, intermediate_size=512),
            16,
            {},
            {"pipe": 4, "fsdp": 8, "tensor": 2},
        ),
        (ModelConfig(num_layers=48, num_attention_heads=7, intermediate_size=511), 3, {}, {"pipe": 2, "fsdp": 32}),
        (BIG_MODEL, 1, {}, {"fsdp": 8, "tensor": 8}),  # a pipeline that cannot be filled is none
        (BIG_MODEL, 16, {"pipeline_parallel": 2}, {"pipe": 2, "fsdp": 4, "tensor": 8}),
        (BIG_MODEL, 16, {"tensor_parallel": 2}, {"pipe": 4, "fsdp": 8, "tensor": 2}),
        (BIG_MODEL, 16, {"data_parallel": 16}, {"data": 16, "tensor": 4}),
        (BIG_MODEL, 16, {"expert_parallel": 2, "context_parallel": 2},
         {"pipe": 2, "expert": 2, "context": 2, "tensor": 8}),
        (None, 16, {}, {"fsdp": 64}),
    ],
)  # fmt: skip
def test_auto_uses_sizes_that_divide_the_model_and_keeps_those_given(model, microbatches, config, expected):
    layout = resolve_layout(DistributedConfig(**config), 64, AUTO_TENSOR, model, microbatches)
    assert used(layout) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistributedConfig(strategy="fspd"), "training.distributed.strategy: unknown strategy 'fspd' (did you mean"),
        (
            DistributedConfig(world_size=16),
            "training.distributed.world_size: the config asks for 16 devices, 8 present; run it there, or set "
            "world_size=none and the *_parallel sizes to fit",
        ),
        (
            DistributedConfig(data_parallel=3),
            "training.distributed: data_parallel 3 × fsdp_parallel 2 × tensor_parallel 1 = 6 devices, but 8 are to "
            "be used; make the product equal",
        ),
        (
            DistributedConfig(tensor_parallel=3),
            "data_parallel 2 × fsdp_parallel 1 × tensor_parallel 3 = 6 devices, but 8 are to be used",
        ),
        (
            DistributedConfig(pipeline_parallel=3, strategy="fsdp"),
            "data_parallel 1 × fsdp_parallel 2 × pipeline_parallel 3 × tensor_parallel 1 = 6 devices",
        ),
        (
            DistributedConfig(strategy="tensor", data_parallel=3),
            "data_parallel 3 × fsdp_parallel 1 × tensor_parallel 2 = 6 devices",
        ),
        (
            DistributedConfig(strategy="expert", context_parallel=16),
            "data_parallel 1 × fsdp_parallel 1 × context_parallel 16 × tensor_parallel 1 = 16 devices, but 8",
        ),
        (
            DistributedConfig(world_size=6, expert_parallel=4),
            "expert_parallel 4 × tensor_parallel 1 = 4 devices, but 6 are to be used",
        ),
    ],
)
def test_what_does_not_fit(config, message):
    with pytest.raises(ConfigError) as caught:
        resolve_layout(config, 8, SMALL)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


SIZE = st.sampled_from([1, 2, 3, 4, 8])
OPEN_SIZE = st.none() | SIZE


@given(
    config=st.builds(
        DistributedConfig,
        strategy=st.sampled_from(STRATEGIES),
        world_size=st.none() | st.integers(1, 64),
        data_parallel=OPEN_SIZE,
        fsdp_parallel=OPEN_SIZE,
        tensor_parallel=SIZE,
        pipeline_parallel=SIZE,
        expert_parallel=SIZE,
        context_parallel=SIZE,
    ),
    devices=st.integers(1, 64) | st.sampled_from([128, 512, 1536]),
    parameters=st.sampled_from([SMALL, AUTO_FSDP, AUTO_PIPELINE, AUTO_TENSOR, AUTO_LARGEST]),
    model=st.none() | st.just(BIG_MODEL),
    microbatches=st.integers(1, 32),
)
def test_all_devices_are_used_and_sizes_given_are_kept(config, devices, parameters, model, microbatches):
    try:
        layout = resolve_layout(config, devices, parameters, model, microbatches)
    except ConfigError:
        return
    assert math.prod(layout.sizes.values()) == (config.world_size or devices)
    assert tuple(layout.sizes) == MESH_AXES
    for axis in MESH_AXES:
        given_size = getattr(config, f"{'pipeline' if axis == 'pipe' else axis}_parallel")
        assert given_size in (None, 1, layout.sizes[axis])
    for axis in ("data", "fsdp"):
        assert getattr(config, f"{axis}_parallel") in (None, layout.sizes[axis])
