"""Meshes of devices that need not exist: where collectives go, and whether parameters can be cut so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from jax.sharding import Mesh

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.report import DescribedDevice
from apt_jax.trainops.plan.network import Network
from apt_jax.vgpu.scheduler.devices import Target
from apt_jax.vgpu.scheduler.mesh import Mesh as MeshSizes
from apt_jax.vgpu.scheduler.shapes import parameters

NOT_CUT = "parameters not divided by the mesh"
ACROSS_SLICES = "inner axes across slices"


class Places:
    """Meshes over a target's devices, each made once.

    Args:
      model: whose parameters are cut.
      target: the devices.
      vocab_size: rows of the embedding.
      slices: as in `DistributedConfig`.
    """

    def __init__(self, model: ModelConfig, target: Target, vocab_size: int, slices: int | None = None):
        self._tensors, self._links, self._slices = parameters(model, vocab_size), target.device.links, slices
        self._devices = list(_places(target))
        self._reasons: dict[tuple[int, ...], str | None] = {}
        self._networks: dict[tuple[int, ...], Network] = {}

    def why_not(self, sizes: Mapping[str, int]) -> str | None:
        """Why there can be no such mesh; None if there can."""
        key = tuple(sizes[axis] for axis in MESH_AXES)
        if key not in self._reasons:
            self._reasons[key] = self._find_reason(sizes)
        return self._reasons[key]

    def network(self, sizes: Mapping[str, int]) -> Network:
        """The links of a mesh that is possible."""
        key = tuple(sizes[axis] for axis in MESH_AXES)
        if key not in self._networks:
            self._networks[key] = Network(self._mesh(sizes), self._links)
        return self._networks[key]

    def _find_reason(self, sizes: Mapping[str, int]) -> str | None:
        cut = MeshSizes.sized(sizes)
        if not all(cut.divides(tensor.shape, tensor.axes) for tensor in self._tensors):
            return NOT_CUT
        try:
            self._mesh(sizes)
        except ConfigError:
            return ACROSS_SLICES
        return None

    def _mesh(self, sizes: Mapping[str, int]) -> Mesh:
        return make_mesh(sizes, self._devices, slices=self._slices)


def _places(target: Target) -> Iterator[DescribedDevice]:
    each, platform = target.count // target.slices, target.device.platform
    for i in range(target.count):
        slice_index, inside = divmod(i, each)
        coords: tuple[int, ...] = ()
        if platform == "tpu":
            shape = (*target.topology, 1, 1)[:3]
            coords = tuple(map(int, np.unravel_index(inside, shape)))
        yield DescribedDevice(i, platform, slice_index=slice_index, coords=coords)


def ring(sizes: Mapping[str, int], axis: str) -> tuple[tuple[int, int], ...]:
    """(source, target) positions of a permute by one along a mesh axis."""
    positions = np.arange(math.prod(sizes.values())).reshape([sizes[a] for a in MESH_AXES])
    onward = np.roll(positions, -1, axis=MESH_AXES.index(axis))
    return tuple(zip(positions.reshape(-1).tolist(), onward.reshape(-1).tolist(), strict=True))
