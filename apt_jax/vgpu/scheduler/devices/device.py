"""What is known of a device: memory, arithmetic, links, and what a compiler must be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from apt_jax.core.errors import PluginError

DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4")


@dataclass(frozen=True)
class Link:
    """A network that joins devices, one level of several.

    Attributes:
      name: "NVLink", "InfiniBand", "ICI" …
      devices: that one network joins, counted from the first; None: any number.
      bandwidth: bytes/s of one device in each direction, all its ports together.
      latency: seconds from one device to the next.
    """

    name: str
    devices: int | None
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Device:
    """One accelerator, as its data sheet has it.

    Attributes:
      name: as in `--target=NAME:COUNT`.
      label: the product.
      vendor: whose compiler makes programs for it.
      memory_bytes: that a program can have: what the runtime reports without what it keeps for itself.
      nominal_bytes: as sold.
      flops: FLOP/s by dtype of the operands, dense, of tensor units where there are any (fp32: without).
      bandwidth: bytes/s between the device and its memory.
      links: from the fastest and smallest to the one that joins everything.
      per_host: devices in one host.
      host_bandwidth: bytes/s in each direction between the device and its host's memory; None: not known.
      gpu: fields of XLA's GpuDeviceInfoProto, for NVIDIA.
      topologies: shapes of a TPU slice that can be had, smallest first; a count is looked up here.
    """

    name: str
    label: str
    vendor: Literal["nvidia", "tpu", "cpu"]
    memory_bytes: int
    nominal_bytes: int
    flops: Mapping[str, float]
    bandwidth: float
    links: tuple[Link, ...]
    per_host: int = 8
    gpu: Mapping[str, Any] = field(default_factory=dict)
    topologies: tuple[tuple[int, ...], ...] = ()
    host_bandwidth: float | None = None

    def __post_init__(self) -> None:
        """Raises PluginError for a description that no plan could be made with."""
        unknown = sorted(set(self.flops) - set(DTYPES))
        if unknown:
            raise PluginError(f"device '{self.name}': flops for {unknown[0]!r}; dtypes are {', '.join(DTYPES)}")
        if not self.flops or not self.links:
            raise PluginError(f"device '{self.name}': give flops by dtype and at least one link")
        if self.links[-1].devices is not None:
            raise PluginError(f"device '{self.name}': its last link must join any number: devices=None")
        if not 0 < self.memory_bytes <= self.nominal_bytes:
            raise PluginError(f"device '{self.name}': memory_bytes must be above 0 and at most nominal_bytes")

    @property
    def platform(self) -> str:
        """jax's name of the device kind: gpu, tpu, cpu."""
        return "gpu" if self.vendor == "nvidia" else self.vendor

    def peak(self, dtype: str) -> tuple[float, str]:
        """(FLOP/s, dtype that gives it): of `dtype`, else of the next wider one that the device multiplies."""
        wider = {"fp4": "fp8", "fp8": "bf16", "int8": "bf16", "fp16": "bf16", "bf16": "fp32", "tf32": "fp32"}
        while dtype not in self.flops and dtype in wider:
            dtype = wider[dtype]
        if dtype not in self.flops:
            dtype = max(self.flops, key=lambda name: self.flops[name])
        return self.flops[dtype], dtype
