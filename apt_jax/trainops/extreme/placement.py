"""Which link each mesh axis crosses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.report import described_devices
from apt_jax.trainops.extreme.axes import NAMES
from apt_jax.trainops.extreme.links import LONG_HAUL
from apt_jax.trainops.plan.network import Network
from apt_jax.vgpu.scheduler import Device

_MAY_TRAVEL = ("pipe", "data")  # what data centres may send each other: activations, or gradients once a step


@dataclass(frozen=True)
class AxisPlace:
    """Where one mesh axis lies.

    Attributes:
      axis: of the mesh.
      size: devices along it.
      stride: devices from one to its neighbour along the axis, inside a data centre.
      link: the slowest that a group of the axis crosses.
      bandwidth: bytes/s of one device on it.
    """

    axis: str
    size: int
    stride: int
    link: str
    bandwidth: float


@dataclass(frozen=True)
class Placement:
    """A mesh on a machine's links.

    Attributes:
      levels: links from the inside: (name, devices that one joins; None: all).
      axes: only those larger than 1, from the inside.
      warnings: what is worth changing.
    """

    levels: tuple[tuple[str, int | None], ...]
    axes: tuple[AxisPlace, ...]
    warnings: tuple[str, ...]

    def link(self, axis: str) -> str | None:
        """The slowest link that an axis crosses; None for an axis of size 1."""
        return next((place.link for place in self.axes if place.axis == axis), None)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


def place(sizes: Mapping[str, int], device: Device, slices: int | None = None) -> Placement:
    """Lays the mesh over the devices as training does: `tensor` innermost, `pipe` and `data` outermost.

    Args:
      sizes: devices per mesh axis.
      device: with the machine's links.
      slices: groups of devices that only outer axes may cross; as `make_mesh`.

    Raises:
      ConfigError: the axes cannot be spread over the slices.
    """
    devices = described_devices(math.prod(sizes.values()))
    network = Network(make_mesh(sizes, devices, slices=slices), device.links)
    speed = {link.name: link.bandwidth for link in device.links}
    places, stride = [], 1
    for axis in reversed(MESH_AXES):
        if (link := network.axis_level(axis)) is not None:
            places.append(AxisPlace(axis, sizes[axis], stride, link, speed[link]))
        stride *= sizes[axis]
    levels = tuple((link.name, link.devices) for link in device.links)
    return Placement(levels, tuple(places), tuple(_warnings(places, device)))


def _warnings(places: list[AxisPlace], device: Device) -> list[str]:
    fastest = device.links[0]
    warnings = []
    for each in places:
        if each.axis == "tensor" and each.link != fastest.name:
            warnings.append(
                f"tensor {each.size} leaves the rack: it sends activations of every layer over {each.link}; use a size "
                f"that divides {fastest.devices}, the devices that {fastest.name} joins"
            )
        elif each.link == LONG_HAUL.name and each.axis not in _MAY_TRAVEL:
            warnings.append(
                f"{NAMES[each.axis]} {each.size} crosses data centres: make pipeline × data a multiple of their "
                "number, and their devices a multiple of the inner sizes"
            )
    return warnings
