"""Devices as data, and targets: a device, how many of it, and how they are wired.

target = parse_target("h100:16", plugins)     # or "v5p:4x4x4", "cpu:8"
devices = topology_devices(target)            # jax devices to compile for; none of them need exist
"""

from apt_jax.vgpu.scheduler.devices.device import Device, Link
from apt_jax.vgpu.scheduler.devices.target import Target, TargetError, find_device, parse_target
from apt_jax.vgpu.scheduler.devices.topology import topology_devices

__all__ = ["Device", "Link", "Target", "TargetError", "find_device", "parse_target", "topology_devices"]
