"""Axes of a mesh laid along the dimensions of a TPU slice, so that neighbours on the mesh are neighbours in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from apt_jax.core.errors import ConfigError


def arrange_on_torus(devices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """The chips of one slice in the shape of a mesh, its last axis being the one that communicates most.

    Where every axis is a product of whole dimensions, or a ring is known, jax arranges them. Else dimensions are
    split: jax can do that too, but not where a dimension is twice a larger prime (28 = 2 × 2 × 7), as it then loses
    the small factors.

    Args:
      devices: with `coords`, as many as the mesh has places.
      shape: of the mesh.

    Raises:
      ConfigError: the chips are no whole box of the torus.
    """
    box = _box(devices)
    try:
        return mesh_utils.create_device_mesh(tuple(shape), devices=devices)
    except NotImplementedError:
        return _split(box, shape)


def _box(devices: Sequence[Any]) -> np.ndarray:
    """Devices by their coordinates; cores of a chip, where they are devices, along a fourth dimension."""
    places = np.array([(*device.coords, getattr(device, "core_on_chip", 0)) for device in devices])
    places -= places.min(axis=0)
    box = np.full(places.max(axis=0) + 1, None, dtype=object)
    for device, place in zip(devices, places, strict=True):
        box[tuple(place)] = device
    if box.size != len(devices) or any(device is None for device in box.flat):
        raise ConfigError(
            f"training.distributed.world_size: {len(devices)} chips are no whole box of this TPU's torus; use all of "
            "its chips, or as many as whole rows of hosts have"
        )
    return box


def _split(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Dimensions of the box shared out among axes, the last axis first.

    An axis takes whole dimensions where it can, and else the largest common factor; there is one until it has all,
    as box and mesh have the same prime factors. Of a shared dimension the later axis has the neighbours.
    """
    free = list(box.shape)
    taken = np.ones((box.ndim, len(shape)), dtype=int)  # [dimension, axis]
    for axis in reversed(range(len(shape))):
        rest = shape[axis]
        while rest > 1:
            common = [math.gcd(rest, size) for size in free]
            whole = [n == size > 1 for n, size in zip(common, box.shape, strict=True)]
            best = max(range(box.ndim), key=lambda dimension: (whole[dimension], common[dimension]))
            taken[best, axis] *= common[best]
            free[best] //= common[best]
            rest //= common[best]
    by_dimension = box.reshape(taken.reshape(-1))
    order = np.arange(taken.size).reshape(taken.shape).T.reshape(-1)  # from [dimension, axis] to [axis, dimension]
    return by_dimension.transpose(order).reshape(tuple(shape))
