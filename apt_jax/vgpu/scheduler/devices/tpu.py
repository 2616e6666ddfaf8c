"""Google TPUs, a device being a chip.

Sources: cloud.google.com/tpu/docs/{v5e,v5p,v6e} (peak, HBM, chips per pod, inter-chip bandwidth, of which the
page gives both directions together); jax-ml.github.io/scaling-book/tpus (data-centre network per chip). v5e was
compared with its page; the others are as remembered and want checking before money depends on them. What a
program can have is the compiler's own word for v5e; for the others the same quarter GiB is taken off.
"""

from __future__ import annotations

from apt_jax.vgpu.scheduler.devices.device import Device, Link

GIB = 2**30
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16),
    (8, 16, 16), (16, 16, 16), (16, 16, 24), (16, 20, 28),
)  # fmt: skip


def v5e() -> Device:
    """TPU v5e. XLA gives programs 15.75 of the 16 GiB, as its own message says."""
    return _tpu("v5e", "TPU v5e", 15.75, 16, bf16=197e12, int8=393e12, bandwidth=819e9, ici=200e9, dcn=3.125e9,
                pod=256, shapes=_FLAT)  # fmt: skip


def v5p() -> Device:
    """TPU v5p, megacore: both cores of a chip are one device."""
    return _tpu("v5p", "TPU v5p", 94.75, 95, bf16=459e12, int8=918e12, bandwidth=2765e9, ici=600e9, dcn=6.25e9,
                pod=8960, shapes=_CUBES)  # fmt: skip


def v6e() -> Device:
    """TPU v6e, Trillium."""
    return _tpu("v6e", "TPU v6e", 31.25, 32, bf16=918e12, int8=1836e12, bandwidth=1640e9, ici=400e9, dcn=12.5e9,
                pod=256, shapes=_FLAT)  # fmt: skip


def _tpu(
    name: str,
    label: str,
    usable_gib: float,
    nominal_gib: float,
    *,
    bf16: float,
    int8: float,
    bandwidth: float,
    ici: float,
    dcn: float,
    pod: int,
    shapes: tuple[tuple[int, ...], ...],
) -> Device:
    return Device(
        name,
        label,
        "tpu",
        int(usable_gib * GIB),
        int(nominal_gib * GIB),
        # At jax's default precision a float32 matmul is one pass in bf16.
        {"fp32": bf16, "bf16": bf16, "int8": int8},
        bandwidth,
        (Link("ICI", pod, ici, 1e-6), Link("data centre", None, dcn, 1e-5)),
        per_host=4,
        topologies=shapes,
    )
