"""Sizes of the axes: as given, chosen, refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from apt_jax.core.config import Config, default_config, load_profile, validate
from apt_jax.core.config.schema import ModelConfig, TrainingConfig
from apt_jax.core.errors import AptError
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.engine import ExtremeScaleTrainer
from apt_jax.trainops.extreme.axes import read_axes
from apt_jax.trainops.extreme.base import read_model
from apt_jax.trainops.extreme.choose import Machine, allowed_layouts
from apt_jax.vgpu.scheduler import estimate, find_device
from apt_jax.vgpu.scheduler.estimator import FILL

PLUGINS = load_plugins(disabled=("*",))
FULL = {"data": 3125, "fsdp": 4, "tensor": 8}


def make(model: Any = "175B", world_size=100_000, axes=None, **options):
    return ExtremeScaleTrainer(model, world_size, axes, plugins=PLUGINS, **options)


def used(trainer):
    return {axis: size for axis, size in trainer.sizes.items() if size > 1}


def test_as_given():
    trainer = make(axes=FULL)
    assert used(trainer) == FULL
    training = trainer.config.training
    assert training.distributed.world_size == 100_000 and training.batch_size == 12_500  # a sequence for every rank
    names = {"data_parallel": 3125, "fsdp_parallel_size": 4, "tensor_parallel": 8}
    assert make(axes=names).config == trainer.config


def test_what_is_left_goes_to_the_other_data_axis():
    assert used(make(axes={"fsdp": 4, "tensor": 8})) == FULL
    assert used(make(axes={"data": 3125, "tensor": 8})) == FULL


@pytest.mark.parametrize(
    ("model", "world_size"), [("175B", 99_968), ("175B", 131_072), ("70B", 100_000), ("1T", 65_536)]
)
def test_a_layout_that_fits_is_chosen(model, world_size):
    trainer = make(model, world_size)
    assert math.prod(trainer.sizes.values()) == world_size
    found = estimate(trainer.config)
    assert found.memory_per_gpu <= FILL * trainer.target.device.memory_bytes
    assert trainer.sizes["tensor"] <= 8  # stays on NVLink
    held = trainer.config.training
    rows = trainer.sizes["data"] * trainer.sizes["fsdp"]
    assert held.batch_size == rows * held.gradient_accumulation_steps


def test_given_sizes_are_kept_while_the_others_are_chosen():
    trainer = make("70B", 131_072, {"tensor": 4, "pipeline": 8})
    assert (trainer.sizes["tensor"], trainer.sizes["pipe"]) == (4, 8)
    assert trainer.config.training.gradient_accumulation_steps == 32  # the bubble stays below a fifth


def test_a_profile_keeps_its_batch_and_loses_its_layout():
    trainer = make("pro", 32)
    assert trainer.config.training.batch_size == validate(load_profile("pro")).training.batch_size
    assert trainer.config.training.distributed.world_size == 32
    whole = Config(model=replace(trainer.config.model, vocab_size=512), training=TrainingConfig(batch_size=64))
    assert make(whole, 64, {"data": 64}).config.training.batch_size == 64
    assert make(default_config(), 16, {"data": 16}).config.training.batch_size == 16
    assert make(trainer.config.model, 8, {"data": 8}).config.training.batch_size == 8


def test_other_keys():
    trainer = make("7B", 64, {"data": 64}, overrides=["training.optimizer=muon"], sequence_length=1024,
                   gradient_accumulation_steps=2)  # fmt: skip
    training = trainer.config.training
    assert (training.optimizer, training.batch_size, trainer.config.data.sequence_length) == ("muon", 128, 1024)
    for batch in (16, 256):  # 16 is what an open batch begins with
        given = make("7B", 8, {"data": 8}, overrides={"training.batch_size": batch})
        assert given.config.training.batch_size == batch
    options = {"pipeline": 59, "data": 8, "fsdp": 1, "pipeline_schedule": "gpipe"}
    piped = make("7B", 472, options, gradient_accumulation_steps=64).config.training.distributed
    assert (piped.pipeline_parallel, piped.pipeline_schedule) == (59, "gpipe")


NEAREST = r"the nearest that 175B allows: data 6,250 × fsdp 2 × tensor 8; data 3,125 × fsdp 4 × tensor 8; data "


@pytest.mark.parametrize(
    ("model", "world_size", "axes", "options", "message"),
    [
        ("175B", 100_000, {"tensr": 8}, {}, r"unknown key 'tensr' \(did you mean 'tensor'\?\); available: context,"),
        ("175B", 100_000, {"tensor": 0}, {}, "tensor: 0 is not a whole number from 1 up"),
        ("175B", 100_000, {"tensor": True}, {}, "tensor: True is not a whole number from 1 up"),
        ("175B", 100_000, {"data": 8, "data_parallel": 8}, {}, "data is given twice; leave one of them out"),
        (
            "175B", 100_000, {"data": 3125, "fsdp": 2, "tensor": 8}, {},
            "data 3,125 × fsdp 2 × tensor 8 = 50,000 devices, but world_size is 100,000; " + NEAREST,
        ),
        (
            "175B", 100_000, {"data": 64, "tensor": 8, "pipeline": 8}, {},
            "pipeline 8 × data 64 × tensor 8 = 4,096 devices, which do not divide world_size 100,000; the nearest",
        ),
        ("175B", 131_072, {"tensor": 5}, {}, "tensor_parallel: 5 does not divide model.num_attention_heads=48"),
        ("175B", 131_072, {"tensor": 5, "data": 8}, {}, "= 40 devices, which do not divide world_size 131,072"),
        ("7B", 64, {"data": 8, "fsdp": 2, "pipeline": 4}, {}, "pipeline_parallel: 4 does not divide model.num_layers="),
        (
            "175B", 100_000, FULL, {"batch_size": 1000},
            "batch_size: 1000 cut in 1 gives 1000 sequences, which 12500 data-parallel devices cannot share equally",
        ),
        ("175B", 131_072, None, {"batch_size": 1000}, "1,000 sequences cannot be shared .* a multiple of 16,384$"),
        ("175B", 100_000, FULL, {"device": "h1000"}, r"unknown device 'h1000' \(did you mean 'h100'\?\)"),
        ("175B", 100_004, None, {}, "hosts have 8 GPUs each; use h100:100000 or h100:100008"),
        ("175B", 0, None, {}, "world_size: 0 is not a whole number from 1 up"),
        ("175Q", 8, None, {}, "unknown size '175Q'; .*; or a profile: full, lite, playground, pro, standard"),
        (7, 8, None, {}, "model: int; give a size such as '175B', a profile's name, or a config"),
        ("7B", 64, {"data": 64}, {"datacenters": 3}, "datacenters: 3 do not hold equal shares of world_size 64; give"),
        ("7B", 64, {"data": 64}, {"datacenters": 2, "gpus_per_datacenter": 16}, "2 × 16 = 32 devices hold no world_"),
        ("7B", 64, {"data": 64}, {"gpus_per_datacenter": 4}, "4 are fewer than NVLink joins, 8; use more"),
        ("7B", 64, {"data": 64}, {"rack_size": 0}, "rack_size: 0 is not a whole number from 1 up"),
        ("7B", 64, {"data": 64}, {"rack_size": 4, "device": "cpu"}, "cpu has one link, process, for all devices"),
        (
            "7B", 64, {"data": 64}, {"overrides": ["training.distributed.slices=2"]},
            "training.distributed.slices: the layout is given by parallelism_config; put it there",
        ),
        ("7B", 64, {"data": 64}, {"overrides": ["model.hidden_siz=3"]}, r"unknown key \(did you mean 'hidden_size'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(model, world_size, axes, options, message):
    with pytest.raises(AptError, match=message) as caught:
        make(model, world_size, axes, **options)
    assert "\n" not in str(caught.value)


def test_a_machine_that_no_layout_fits_is_told_from_one_that_does():
    """100,000 = 2⁵·5⁵ cuts a width of 6,144 = 2¹¹·3 into 32 pieces at most."""
    with pytest.raises(AptError, match=r"no layout of 175B fits 100,000 × h100: the least .* is 97\.\d GiB") as caught:
        make()
    text = str(caught.value)
    for world_size in (99_984, 100_032):
        assert f"world_size={world_size} (" in text
        assert math.prod(make(world_size=world_size).sizes.values()) == world_size


def test_allowed_layouts_are_all_there_are():
    model = ModelConfig(architecture="llama", hidden_size=48, num_layers=6, num_attention_heads=4,
                        num_key_value_heads=2, intermediate_size=96, vocab_size=96)  # fmt: skip
    base, machine = read_model(model, sequence_length=64), Machine(find_device("h100", PLUGINS), 24)
    found = allowed_layouts(base, machine, {})
    by_hand = [
        (pipe, 24 // (pipe * fsdp * tensor), fsdp, tensor)
        for pipe in (1, 2, 3, 6) for tensor in (1, 2) for fsdp in range(1, 25)
        if 24 % (pipe * fsdp * tensor) == 0 and 48 % (fsdp * pipe) == 0
    ]  # fmt: skip
    assert sorted((s["pipe"], s["data"], s["fsdp"], s["tensor"]) for s in found) == sorted(by_hand)
    assert {sizes["context"] for sizes in allowed_layouts(base, machine, {"context": 4})} == {4}
    assert not allowed_layouts(base, machine, {"context": 3})  # a row of 64 is not cut in six


def test_options_are_part_of_what_divides():
    groups = {"pipeline_schedule": "interleaved", "pipeline_chunks": 2}
    assert make("1T", 65_536, groups).sizes["pipe"] == 1  # of 654 = 2·3·109 layers two stages have no two groups each
    row = {"context": 8, "context_method": "ulysses"}  # a ring would need twice as many pieces
    found = make("7B", 64, row, sequence_length=1000)
    assert found.sizes["context"] == 8
    assert found.config.model.num_attention_heads % (8 * found.sizes["tensor"]) == 0  # each has heads of its own


def test_names():
    sizes, options = read_axes({"pipeline_parallel": 2, "context": 4, "sequence_parallel": True, "slices": 2})
    assert sizes == {"pipe": 2, "context": 4} and options == {"sequence_parallel": True, "slices": 2}
