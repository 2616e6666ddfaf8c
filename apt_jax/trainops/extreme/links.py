"""The levels of a machine's network: the device's own, with racks and data centres of one's own size."""

from __future__ import annotations

from dataclasses import replace

from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.scheduler import Device, Link

# Between data centres: 100 Gb/s of long-haul Ethernet for every device, 200 km of fibre away. Round figures.
LONG_HAUL = Link("long-haul Ethernet", None, 12.5e9, 1e-3)


def wire(
    device: Device,
    world_size: int,
    *,
    rack_size: int | None = None,
    datacenters: int = 1,
    gpus_per_datacenter: int | None = None,
    long_haul_bandwidth: float | None = None,
) -> tuple[Device, int | None]:
    """The device with its links as the machine has them, and `slices` for the mesh: None, or one per data centre.

    Args:
      device: as registered.
      world_size: devices of the machine, which fill racks and data centres one after another.
      rack_size: devices that the fastest link joins, such as 72 for NVLink in a GB200 NVL72; None: the device's.
      datacenters: that hold the machine.
      gpus_per_datacenter: devices in each; None: an equal share of `world_size`.
      long_haul_bandwidth: bytes/s of one device between data centres; None: as `LONG_HAUL`.

    Raises:
      ConfigError: sizes that do not go together.
    """
    links = device.links
    for name, size in (("rack_size", rack_size), ("datacenters", datacenters), ("gpus_per_datacenter",
                                                                               gpus_per_datacenter)):  # fmt: skip
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(f"{name}: {size!r} is not a whole number from 1 up")
    if rack_size is not None:
        if len(links) == 1:
            raise ConfigError(f"rack_size: {device.name} has one link, {links[0].name}, for all devices; leave it out")
        links = (replace(links[0], devices=rack_size), *links[1:])
    each = _per_datacenter(world_size, datacenters, gpus_per_datacenter)
    if each is None:
        return replace(device, links=links), None
    inside = links[-1]
    if links[0].devices is not None and each < links[0].devices:
        raise ConfigError(
            f"gpus_per_datacenter: {each:,} are fewer than {links[0].name} joins, {links[0].devices}; use more"
        )
    if long_haul_bandwidth is not None and not long_haul_bandwidth > 0:
        raise ConfigError(f"long_haul_bandwidth: {long_haul_bandwidth:g} must be above 0")
    outside = replace(LONG_HAUL, bandwidth=long_haul_bandwidth or LONG_HAUL.bandwidth)
    links = (*links[:-1], replace(inside, devices=each), outside)
    return replace(device, links=links), (world_size // each if world_size % each == 0 else None)


def _per_datacenter(world_size: int, datacenters: int, given: int | None) -> int | None:
    """Devices of one of several data centres; None: there is one."""
    if given is None:
        if world_size % datacenters:
            raise ConfigError(
                f"datacenters: {datacenters} do not hold equal shares of world_size {world_size:,}; give "
                "gpus_per_datacenter"
            )
        return world_size // datacenters if datacenters > 1 else None
    if datacenters > 1 and given * datacenters < world_size:
        raise ConfigError(
            f"gpus_per_datacenter: {datacenters} × {given:,} = {given * datacenters:,} devices hold no world_size of "
            f"{world_size:,}; use {-(-world_size // datacenters):,} or more"
        )
    return given if given < world_size else None
