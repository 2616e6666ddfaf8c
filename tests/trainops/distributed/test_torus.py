"""Axes on a TPU's torus, with stand-ins for chips."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.torus import arrange_on_torus


@dataclass(frozen=True)
class Chip:
    """What a torus asks of a device."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    device_kind: str = "TPU of some kind"
    platform: str = "tpu"
    slice_index: int = 0
    process_index: int = 0


def box(*dimensions, slice_index=0, **changes):
    places = itertools.product(*map(range, (*dimensions, 1, 1)[:3]))
    return [Chip(i, place, slice_index=slice_index, **changes) for i, place in enumerate(places)]


def distance(one, other, dimensions):
    """Links between two chips, rings being closed."""
    steps = [abs(a - b) for a, b in zip(one.coords, other.coords, strict=True)]
    return sum(min(step, size - step) for step, size in zip(steps, (*dimensions, 1, 1), strict=False))


@pytest.mark.parametrize(
    ("dimensions", "shape"),
    [
        ((4, 4), (1, 1, 8, 1, 1, 2)),  # jax alone: not without splitting a dimension
        ((4, 4), (2, 4, 1, 1, 1, 2)),
        ((16, 16), (2, 1, 8, 1, 2, 8)),
        ((4, 4, 4), (1, 2, 4, 1, 1, 8)),
        ((16, 20, 28), (1, 35, 64, 1, 1, 4)),  # nor with: 28 = 2 × 2 × 7
        ((16, 20, 28), (1, 1, 1120, 1, 1, 8)),
    ],
)
def test_split_dimensions(dimensions, shape):
    chips = box(*dimensions)
    grid = arrange_on_torus(chips, shape)
    assert grid.shape == shape and {chip.id for chip in grid.flat} == set(range(len(chips)))
    inner = grid.reshape(-1, shape[-1])
    # The axis that communicates most gets no more links than one dimension, or whole ones, would give it.
    assert max(distance(a, b, dimensions) for row in inner for a, b in itertools.pairwise(row)) <= 3
    assert np.mean([distance(a, b, dimensions) == 1 for row in inner for a, b in itertools.pairwise(row)]) >= 0.5


def test_whole_dimensions_are_left_to_jax():
    grid = arrange_on_torus(box(4, 8), (1, 1, 4, 1, 1, 8))
    assert all(len({chip.coords[0] for chip in row}) == 1 for row in grid.reshape(4, 8))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.data())
def test_any_mesh_has_a_place(dimensions, data):
    chips = box(*dimensions)
    rest, shape = len(chips), []
    for _ in range(5):
        shape.append(data.draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0])))
        rest //= shape[-1]
    grid = arrange_on_torus(chips, (*shape, rest))
    assert grid.shape == (*shape, rest) and {chip.id for chip in grid.flat} == set(range(len(chips)))


def test_cores_are_a_dimension():
    cores = [Chip(2 * i + core, (i // 2, i % 2, 0), core) for i in range(4) for core in (0, 1)]
    with pytest.raises(AssertionError, match="megacore"):  # jax, of kinds that it does not know to have two
        arrange_on_torus(cores, (1, 1, 4, 1, 1, 2))
    known = [Chip(c.id, c.coords, c.core_on_chip, device_kind="TPU7x") for c in cores]
    pairs = arrange_on_torus(known, (1, 1, 4, 1, 1, 2)).reshape(4, 2)
    assert all(one.coords == other.coords for one, other in pairs)


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 5], [0, 1, 2, 3, 4, 5]])
def test_chips_that_are_no_box(kept):
    chips = box(4, 4)
    with pytest.raises(ConfigError) as caught:
        arrange_on_torus([*(chips[i] for i in kept[:-1]), chips[15]], (len(kept),))
    assert str(caught.value) == (
        f"training.distributed.world_size: {len(kept)} chips are no whole box of this TPU's torus; use all of its "
        "chips, or as many as whole rows of hosts have"
    )


def test_slices_are_split_alike():
    chips = [*box(4, 4, slice_index=0), *box(4, 4, slice_index=1)]
    sizes = {axis: {"data": 2, "fsdp": 8, "tensor": 2}.get(axis, 1) for axis in MESH_AXES}
    grid = make_mesh(sizes, chips).devices.reshape(2, 8, 2)
    assert all(chip.slice_index == i for i in (0, 1) for chip in grid[i].flat)
    assert [c.coords for c in grid[0].flat] == [c.coords for c in grid[1].flat]
    assert math.prod(grid.shape) == 32
