"""The one mesh of six axes, size 1 where unused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.distributed.torus import arrange_on_torus


def make_mesh(
    sizes: Mapping[str, int], devices: Sequence[Any] | None = None, *, slices: int | None = None
) -> Mesh:
    """Builds the mesh with Auto axes, so that every supported jax version propagates shardings alike.

    Devices are grouped by slice (a TPU slice or an NVLink domain: devices with a fast network between them),
    and the outer axes, `pipe` first, run across slices: they communicate least.

    Args:
      sizes: devices along each axis.
      devices: to use; default: all. Of more than the sizes ask for, the first are taken.
      slices: number of slices; None: as the devices report.

    Raises:
      ConfigError: slices of unequal size, or an inner axis (expert, context, tensor) would cross them; or TPU chips
        that make no box.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(sizes[a] for a in MESH_AXES)
    groups = _groups(devices[: math.prod(shape)], slices)
    if len(groups) > 1:
        _check_inner(sizes, len(groups))
    inner = _inner_shape(shape, len(groups))
    grid = np.empty(shape, dtype=object)
    outer = tuple(whole // part for whole, part in zip(shape, inner, strict=True))
    for group, place in zip(groups, np.ndindex(outer), strict=True):
        at = tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, inner, strict=True))
        grid[at] = _arrange(group, inner)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _groups(devices: Sequence[Any], slices: int | None) -> list[list[Any]]:
    """The devices of each slice, in a stable order."""
    if slices is not None:
        if len(devices) % slices:
            raise ConfigError(
                f"training.distributed.slices: {slices} does not divide {len(devices)} devices; use a divisor"
            )
        size = len(devices) // slices
        return [list(devices[i * size : (i + 1) * size]) for i in range(slices)]
    found: dict[int, list[Any]] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    groups = [found[key] for key in sorted(found)]
    if len({len(group) for group in groups}) > 1:
        raise ConfigError(
            f"training.distributed: slices have {sorted({len(g) for g in groups})} devices; use as many of each, "
            "by world_size, or set training.distributed.slices=1 to ignore them"
        )
    return groups


def _inner_shape(shape: Sequence[int], groups: int) -> tuple[int, ...]:
    """The mesh inside one slice: outer axes are divided among slices first."""
    inner = []
    for size in shape:
        across = math.gcd(size, groups)
        groups //= across
        inner.append(size // across)
    return tuple(inner)


def _check_inner(sizes: Mapping[str, int], groups: int) -> None:
    rest = groups
    for axis in ("pipe", "data", "fsdp"):
        rest //= math.gcd(sizes[axis], rest)
    if rest > 1:
        raise ConfigError(
            f"training.distributed: {groups} slices cannot be spread over pipeline_parallel {sizes['pipe']} × "
            f"data_parallel {sizes['data']} × fsdp_parallel {sizes['fsdp']}, and the other axes need the network "
            f"inside a slice; make that product a multiple of {groups}, or set training.distributed.slices=1"
        )


def _arrange(devices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """Devices of one slice; on TPU along the torus, else by process, so that inner axes stay inside one."""
    if devices[0].platform == "tpu":
        return arrange_on_torus(devices, shape)
    grid = np.empty(len(devices), dtype=object)
    grid[:] = list(devices)
    return grid.reshape(tuple(shape))
