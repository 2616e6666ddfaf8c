"""`h100:16`, `v5p:4x4x4`: from a word to a device, a count and a topology."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apt_jax.core.errors import AptError, unknown_name
from apt_jax.vgpu.scheduler.devices.device import Device

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

MOST = 2**20  # devices; beyond it a typing error is likelier than a machine
_FORM = "write NAME:COUNT, as h100:16, or for a TPU its shape, as v5p:4x4x4"


class TargetError(AptError):
    """There is no such device or no such number of it, or no compiler for it is installed."""


@dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
      device: its description.
      count: devices in all.
      topology: NVIDIA: (1, hosts, GPUs per host). TPU: chips of one slice along each dimension. CPU: (count,).
      slices: TPU: slices joined by the data-centre network.
    """

    device: Device
    count: int
    topology: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        return f"{self.device.name}:{self.count}"

    @property
    def wiring(self) -> str:
        """One phrase: how the devices are joined."""
        if self.device.vendor == "tpu":
            shape = "x".join(map(str, self.topology))
            return f"{self.slices} slices of {shape}" if self.slices > 1 else f"one slice of {shape}"
        if self.device.vendor == "nvidia":
            _, hosts, each = self.topology
            return f"{hosts:,} hosts of {each}" if hosts > 1 else "one host"
        return "one process"


def find_device(name: str, plugins: Plugins) -> Device:
    """The device that a plugin registered under `name`.

    Raises:
      TargetError: no such device; the line lists all.
      PluginError: its description cannot be made.
    """
    registry = plugins.registry("devices")
    if name not in registry:
        raise TargetError(f"--target: {unknown_name('device', name, registry)}")
    device = registry.make(name)
    if not isinstance(device, Device):
        raise TargetError(
            f"--target: device '{name}' of plugin '{registry[name].plugin}' is no Device; return "
            "apt_jax.vgpu.scheduler.Device"
        )
    return device


def parse_target(text: str, plugins: Plugins) -> Target:
    """`NAME:COUNT` or, for a TPU, `NAME:XxY` or `NAME:XxYxZ`.

    Raises:
      TargetError: unknown device, not a count, or a count that cannot be had in whole hosts or slices.
    """
    name, colon, rest = text.partition(":")
    device = find_device(name.strip().lower(), plugins)
    if not colon or not re.fullmatch(r"[0-9]+(x[0-9]+)*", rest):
        raise TargetError(f"--target={text}: how many? {_FORM}")
    sizes = tuple(map(int, rest.split("x")))
    count = math.prod(sizes)
    if not 1 <= count <= MOST:
        raise TargetError(f"--target={text}: {count:,} devices; from 1 to {MOST:,} can be planned for")
    return _MAKERS[device.vendor](text, device, sizes)


def _nvidia(text: str, device: Device, sizes: tuple[int, ...]) -> Target:
    if len(sizes) > 1:
        raise TargetError(f"--target={text}: a GPU target is a count, as {device.name}:{math.prod(sizes)}")
    count, per_host = math.prod(sizes), device.per_host
    if count > per_host and count % per_host:
        near = count // per_host * per_host
        raise TargetError(
            f"--target={text}: hosts have {per_host} GPUs each; use {device.name}:{near} or "
            f"{device.name}:{near + per_host}"
        )
    each = min(count, per_host)
    return Target(device, count, (1, count // each, each))


def _tpu(text: str, device: Device, sizes: tuple[int, ...]) -> Target:
    known = device.topologies
    if len(sizes) > 1:
        largest = known[-1] if known else sizes
        if len(sizes) != len(largest):
            example = "x".join(map(str, largest))
            raise TargetError(
                f"--target={text}: a slice of {device.name} has {len(largest)} dimensions, as {device.name}:{example}"
            )
        if math.prod(sizes) > (most := math.prod(largest)):
            raise TargetError(
                f"--target={text}: a slice of {device.name} has at most {most:,} chips; give a count instead of a "
                f"shape for several slices, as {device.name}:{2 * most}"
            )
        return Target(device, math.prod(sizes), sizes)
    count = math.prod(sizes)
    for shape in reversed(known):  # the largest slices communicate least over the slow network
        chips = math.prod(shape)
        if count == chips or (count % chips == 0 and chips > 1 and count > math.prod(known[-1])):
            return Target(device, count, shape, count // chips)
    raise TargetError(
        f"--target={text}: {count:,} {'chip makes' if count == 1 else 'chips make'} no slice of {device.name}; "
        f"one slice has {', '.join(str(math.prod(shape)) for shape in known)}, or give its shape"
    )


def _cpu(text: str, device: Device, sizes: tuple[int, ...]) -> Target:
    return Target(device, math.prod(sizes), (math.prod(sizes),))


_MAKERS: Mapping[str, Callable[[str, Device, tuple[int, ...]], Target]] = {"nvidia": _nvidia, "tpu": _tpu, "cpu": _cpu}
