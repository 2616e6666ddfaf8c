"""Which rows a process reads, and that they arrive on the mesh as they were."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.distributed import feed as feed_module
from apt_jax.trainops.distributed.context.order import inverse_order, zigzag_order
from apt_jax.trainops.distributed.feed import Feed
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.rules import batch_sharding, make_rules

B, T = 16, 8


@dataclass(frozen=True)
class Device:
    """What a mesh asks of a device."""

    id: int
    process_index: int
    platform: str = "gpu"


def sharding_of(devices=None, **sizes):
    mesh = make_mesh({axis: sizes.get(axis, 1) for axis in MESH_AXES}, devices)
    return batch_sharding(make_rules(mesh, {}), B, T)


def devices_of(*processes):
    """One device per entry, of the process it says."""
    return [Device(i, process) for i, process in enumerate(processes)]


def batch():
    tokens = np.arange(B * T, dtype=np.int32).reshape(B, T)
    return {"tokens": tokens, "loss_mask": (tokens % 3).astype(np.float32)}


def rows_of_processes(monkeypatch, sharding, count):
    """The rows of every process's feed."""
    found = []
    for process in range(count):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(Feed(sharding, B).rows.tolist())
    return found


# One process.


@pytest.mark.parametrize(
    "sizes",
    [{}, {"data": 8}, {"data": 2, "fsdp": 2, "expert": 2}, {"tensor": 8}, {"context": 2, "fsdp": 4}, {"pipe": 2}],
    ids=str,
)
def test_global_arrays_equal_the_input(sizes):
    feed = Feed(sharding_of(**sizes), B)
    assert feed.rows.tolist() == list(range(B))
    given = batch()
    for name, array in feed.put(given).items():
        np.testing.assert_array_equal(array, given[name])
        assert array.sharding == sharding_of(**sizes)
        assert array.dtype == given[name].dtype


def test_tokens_are_put_in_the_meshs_order():
    order = zigzag_order(T, 2)
    feed = Feed(sharding_of(context=2, data=2), B, order)
    given = batch()
    put = feed.put(given)["tokens"]
    np.testing.assert_array_equal(put, given["tokens"][:, order])
    np.testing.assert_array_equal(np.asarray(put)[:, inverse_order(order)], given["tokens"])
    first = next(s for s in put.addressable_shards if s.index[0].start in (0, None) and s.index[1].start in (0, None))
    np.testing.assert_array_equal(first.data[0], [0, 1, 6, 7])  # an early piece and the mirrored late one


# Several processes.


@pytest.mark.parametrize(
    ("processes", "sizes", "expected"),
    [
        ((0, 0, 1, 1), {"data": 4}, [(0, 1), (2, 3)]),
        ((0, 0, 1, 1), {"fsdp": 4}, [(0, 1), (2, 3)]),
        ((0, 0, 1, 1), {"expert": 4}, [(0, 1), (2, 3)]),
        ((0, 0, 1, 1), {"data": 2, "tensor": 2}, [(0, 1), (2, 3)]),
        ((0, 1, 2, 3), {"data": 2, "fsdp": 2}, [(0,), (1,), (2,), (3,)]),
        ((1, 1, 0, 0), {"data": 4}, [(2, 3), (0, 1)]),
        # Devices that differ along pipe, context or tensor only need the same rows.
        ((0, 0, 1, 1), {"tensor": 4}, [(0, 1, 2, 3)] * 2),
        ((0, 0, 1, 1), {"pipe": 2, "data": 2}, [(0, 1, 2, 3)] * 2),
        ((0, 0, 1, 1), {"context": 4}, [(0, 1, 2, 3)] * 2),
        ((0, 1, 2, 3), {"fsdp": 2, "tensor": 2}, [(0, 1), (0, 1), (2, 3), (2, 3)]),
        ((0, 1, 2, 3), {"pipe": 2, "fsdp": 2}, [(0, 1), (2, 3), (0, 1), (2, 3)]),
        ((0, 1, 2, 3), {"data": 2, "context": 2}, [(0, 1), (0, 1), (2, 3), (2, 3)]),
        # A mesh along a torus, and shares that differ.
        ((0, 1, 0, 1), {"data": 4}, [(0, 2), (1, 3)]),
        ((0, 0, 0, 1), {"data": 4}, [(0, 1, 2), (3,)]),
        ((0, 1, 1, 2), {"data": 4}, [(0,), (1, 2), (3,)]),
        # A process without devices in the mesh reads everything and puts nothing anywhere.
        ((0, 0), {"data": 2}, [(0, 1, 2, 3)] * 2),
    ],
)
def test_processes_read_the_rows_of_their_devices(processes, sizes, expected, monkeypatch):
    """Expected: in quarters of the batch."""
    sharding = sharding_of(devices_of(*processes), **sizes)
    quarters = np.arange(B).reshape(4, -1)
    rows = [quarters[list(each)].reshape(-1).tolist() for each in expected]
    assert rows_of_processes(monkeypatch, sharding, len(expected)) == rows


@pytest.mark.parametrize(
    ("processes", "sizes"), [((0, 0, 1, 1), {"data": 2, "context": 2}), ((0, 1, 1, 0), {"fsdp": 4})]
)
def test_each_process_gives_its_devices_their_rows(processes, sizes, monkeypatch):
    """The callback that several processes use, run for each of two with all devices at hand."""
    whole, put = batch(), {}

    def from_callback(shape, sharding, shard):
        assert shape == (B, T)
        return {d: shard(i) for d, i in sharding.devices_indices_map(shape).items() if d.process_index == process}

    sharding = sharding_of(devices_of(*processes), **sizes)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(feed_module.jax, "make_array_from_callback", from_callback)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        feed = Feed(sharding, B)
        rows = {name: array[feed.rows] for name, array in whole.items()}
        put |= feed.put(rows)["tokens"]
    for device, index in sharding.devices_indices_map((B, T)).items():
        np.testing.assert_array_equal(put[device], whole["tokens"][index])


def test_real_arrays_by_the_callback_equal_the_input(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # what takes the way of several processes
    sharding = sharding_of(data=2, fsdp=2, context=2)
    given = batch()
    with jax.transfer_guard("disallow"):
        put = Feed(sharding, B).put(given)
    monkeypatch.undo()
    for name, array in put.items():
        np.testing.assert_array_equal(np.asarray(array), given[name])
        assert array.sharding == sharding


def test_other_meshes_than_ours_work_as_well():
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",), axis_types=(AxisType.Auto,))
    feed = Feed(NamedSharding(mesh, PartitionSpec("rows")), 4)
    np.testing.assert_array_equal(feed.put({"x": np.arange(8).reshape(4, 2)})["x"], np.arange(8).reshape(4, 2))
