"""Axes on links, by the mesh that training makes and by counting."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.core.errors import AptError
from apt_jax.core.layout import MESH_AXES
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.engine import ExtremeScaleTrainer
from apt_jax.trainops.extreme.cost import axis_links
from apt_jax.trainops.extreme.placement import place
from apt_jax.trainops.extreme.text import placement_lines
from apt_jax.vgpu.scheduler import Link, find_device

PLUGINS = load_plugins(disabled=("*",))
H100 = find_device("h100", PLUGINS)
ETHERNET = "long-haul Ethernet"


def placed(axes, world_size, **options):
    return ExtremeScaleTrainer("175B", world_size, axes, plugins=PLUGINS, **options).placement


def test_of_100_000_devices():
    found = placed({"data": 3125, "fsdp": 4, "tensor": 8}, 100_000)
    assert [(p.axis, p.size, p.stride, p.link, p.bandwidth) for p in found.axes] == [
        ("tensor", 8, 1, "NVLink", 450e9), ("fsdp", 4, 8, "InfiniBand", 50e9), ("data", 3125, 32, "InfiniBand", 50e9),
    ]  # fmt: skip
    assert found.link("fsdp") == "InfiniBand" and found.link("pipe") is None and found.warnings == ()


def test_a_tensor_that_leaves_the_rack_is_warned_of():
    found = placed({"data": 64, "fsdp": 64, "tensor": 16}, 65_536)
    (warning,) = found.warnings
    assert found.link("tensor") == "InfiniBand"
    assert warning.startswith("tensor 16 leaves the rack: ") and "a size that divides 8, the devices that" in warning
    assert max(map(len, placement_lines(found))) <= 120
    # A rack of 72 holds no whole number of 16, so some of the groups cross; of 64 it does.
    axes = {"data": 9, "fsdp": 64, "tensor": 16}
    assert placed(axes, 9216, rack_size=72).link("tensor") == "InfiniBand"
    wide = placed(axes, 9216, rack_size=64)
    assert wide.link("tensor") == "NVLink" and wide.levels[0] == ("NVLink", 64) and not wide.warnings


def test_data_centres_are_crossed_by_the_outermost_axis():
    found = placed({"data": 1024, "fsdp": 16, "tensor": 8}, 131_072, datacenters=2)
    assert found.levels == (("NVLink", 8), ("InfiniBand", 65_536), (ETHERNET, None))
    assert [found.link(axis) for axis in ("tensor", "fsdp", "data")] == ["NVLink", "InfiniBand", ETHERNET]
    assert found.warnings == ()
    slower = placed({"data": 1024, "fsdp": 16, "tensor": 8}, 131_072, datacenters=2, long_haul_bandwidth=1e9)
    assert slower.axes[-1].bandwidth == 1e9


def test_an_inner_axis_across_data_centres_is_warned_of():
    # Data centres of 50,000 = 3,125 · 16 devices: an odd number of replicas cannot be halved, so `fsdp` is.
    found = placed({"data": 3125, "fsdp": 4, "tensor": 8}, 100_000, datacenters=2)
    assert found.link("fsdp") == ETHERNET and "fsdp 4 crosses data centres" in found.warnings[0]
    unequal = placed({"data": 3125, "fsdp": 4, "tensor": 8}, 100_000, gpus_per_datacenter=64_000)
    assert unequal.link("fsdp") == "InfiniBand" and unequal.link("data") == ETHERNET


def test_axes_that_cannot_be_spread_over_data_centres():
    with pytest.raises(AptError, match="2 slices cannot be spread over pipeline_parallel 1 × data_parallel 3125"):
        _ = placed({"data": 3125, "tensor": 8, "context": 4}, 100_000, datacenters=2)


def test_slices_of_tpus():
    trainer = ExtremeScaleTrainer("7B", 17_920, {"data": 4480, "fsdp": 4}, device="v5p", plugins=PLUGINS)
    assert trainer.target.slices == 2
    assert trainer.placement.link("fsdp") == "ICI" and trainer.placement.link("data") == "data centre"


SIZES = st.lists(st.sampled_from((1, 1, 2, 3, 4, 8)), min_size=6, max_size=6)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.sampled_from((4, 8, 18, 72)), st.sampled_from((1, 3, 8)))
def test_counting_agrees_with_the_mesh(values, rack, racks):
    """The closed form that ranks layouts and the mesh that training makes say the same of every axis."""
    sizes: dict[str, int] = dict(zip(MESH_AXES, values, strict=True))
    if math.prod(values) > 4096:
        return
    links = (Link("a", rack, 4e9, 1e-6), Link("b", rack * racks, 2e9, 1e-6), Link("c", None, 1e9, 1e-6))
    device = replace(H100, links=links)
    found, counted = place(sizes, device), axis_links(device, sizes)
    for axis in MESH_AXES:
        link = counted[axis]
        assert found.link(axis) == (link and link.name), (sizes, axis)
