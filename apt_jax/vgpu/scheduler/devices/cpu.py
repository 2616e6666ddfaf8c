"""A CPU standing in for devices: plans for it can be compiled anywhere, without any extra."""

from __future__ import annotations

from apt_jax.vgpu.scheduler.devices.device import Device, Link

GIB = 2**30


def cpu() -> Device:
    """One simulated device, two cores and 16 GiB of a server: round figures, as every machine differs."""
    within = Link("process", None, 10e9, 1e-6)
    return Device("cpu", "simulated CPU device", "cpu", 16 * GIB, 16 * GIB, {"fp32": 2e11, "bf16": 2e11}, 2e10,
                  (within,), host_bandwidth=2e10)  # fmt: skip
