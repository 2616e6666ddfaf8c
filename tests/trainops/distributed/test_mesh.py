"""The mesh: its axes, and that only outer ones leave a slice."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.distributed.mesh import make_mesh


@dataclass(frozen=True)
class Device:
    """What a mesh asks of a device."""

    id: int
    slice_index: int | None = None
    platform: str = "gpu"
    process_index: int = 0


def sizes_of(**sizes):
    return {axis: sizes.get(axis, 1) for axis in MESH_AXES}


def sliced(*counts):
    """Devices of slices of these sizes."""
    slices = [index for index, count in enumerate(counts) for _ in range(count)]
    return [Device(i, index) for i, index in enumerate(slices)]


def crossing(mesh, of=lambda device: device.slice_index):
    """The axes along which devices of different slices lie."""
    where = np.vectorize(of, otypes=[int])(mesh.devices)
    return {axis for i, axis in enumerate(MESH_AXES) if np.any(where != np.take(where, [0], axis=i))}


def test_six_auto_axes_in_order():
    mesh = make_mesh(sizes_of(pipe=2, fsdp=2, tensor=2))
    assert mesh.axis_names == MESH_AXES
    assert mesh.axis_types == (AxisType.Auto,) * 6
    assert dict(mesh.shape) == sizes_of(pipe=2, fsdp=2, tensor=2)
    assert list(mesh.devices.flat) == jax.devices()


def test_of_more_devices_the_first_are_taken():
    assert list(make_mesh(sizes_of(tensor=2)).devices.flat) == jax.devices()[:2]
    chosen = jax.devices()[4:]
    assert list(make_mesh(sizes_of(data=2), chosen).devices.flat) == chosen[:2]


@pytest.mark.parametrize(
    ("slices", "sizes", "outer"),
    [
        (2, {"pipe": 2, "data": 2, "tensor": 4}, {"pipe"}),
        (4, {"pipe": 2, "data": 2, "fsdp": 2, "tensor": 2}, {"pipe", "data"}),
        (4, {"pipe": 2, "fsdp": 4, "context": 2}, {"pipe", "fsdp"}),
        (8, {"pipe": 2, "data": 2, "fsdp": 2, "expert": 2}, {"pipe", "data", "fsdp"}),
        (2, {"data": 4, "context": 2, "tensor": 2}, {"data"}),
        (2, {"fsdp": 2, "expert": 2, "context": 2, "tensor": 2}, {"fsdp"}),
        (3, {"pipe": 2, "data": 3, "tensor": 4}, {"data"}),
        (6, {"pipe": 4, "data": 3, "tensor": 2}, {"pipe", "data"}),
        (1, {"pipe": 2, "data": 2, "tensor": 2}, set()),
    ],
)
def test_outer_axes_cross_slices_first_and_inner_ones_never(slices, sizes, outer):
    sizes = sizes_of(**sizes)
    count = int(np.prod(list(sizes.values())))
    devices = sliced(*[count // slices] * slices)
    np.random.default_rng(0).shuffle(devices)  # slices need not come one by one
    mesh = make_mesh(sizes, devices)
    assert crossing(mesh) == outer
    assert {d.id for d in mesh.devices.flat} == set(range(count))
    assert dict(mesh.shape) == sizes


def test_a_slice_holds_whole_groups_along_an_axis_that_crosses():
    mesh = make_mesh(sizes_of(data=4, tensor=2), sliced(4, 4))
    assert [[d.slice_index for d in row] for row in mesh.devices.reshape(4, 2)] == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_the_config_can_say_how_many_slices_there_are():
    devices = [Device(i) for i in range(8)]
    mesh = make_mesh(sizes_of(data=2, fsdp=2, tensor=2), devices, slices=2)
    assert crossing(mesh, lambda device: device.id // 4) == {"data"}
    # … also where devices report others, as hosts of one NVLink domain do
    mesh = make_mesh(sizes_of(tensor=8), sliced(4, 4), slices=1)
    assert crossing(mesh) == {"tensor"}


def test_inner_axes_stay_inside_a_process():
    devices = [Device(i, process_index=i // 4) for i in range(16)]
    mesh = make_mesh(sizes_of(pipe=2, fsdp=2, tensor=4), devices)
    assert crossing(mesh, lambda device: device.process_index) == {"pipe", "fsdp"}


@pytest.mark.parametrize(
    ("sizes", "counts", "slices", "message"),
    [
        ({"data": 6}, (4, 2), None,
         "training.distributed: slices have [2, 4] devices; use as many of each, by world_size, or set "
         "training.distributed.slices=1 to ignore them"),
        ({"data": 6}, (4, 4), None, "slices have [2, 4] devices"),  # the first six
        ({"tensor": 8}, (4, 4), None,
         "training.distributed: 2 slices cannot be spread over pipeline_parallel 1 × data_parallel 1 × fsdp_parallel "
         "1, and the other axes need the network inside a slice; make that product a multiple of 2, or set "
         "training.distributed.slices=1"),
        ({"data": 2, "context": 4}, (2, 2, 2, 2), None, "4 slices cannot be spread over"),
        ({"pipe": 2, "expert": 6}, (4, 4, 4), None, "make that product a multiple of 3"),
        ({"data": 8}, (8,), 3, "training.distributed.slices: 3 does not divide 8 devices; use a divisor"),
        ({"tensor": 8}, (8,), 2, "2 slices cannot be spread over"),
    ],
)  # fmt: skip
def test_slices_that_do_not_fit(sizes, counts, slices, message):
    with pytest.raises(ConfigError) as caught:
        make_mesh(sizes_of(**sizes), sliced(*counts), slices=slices)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
