"""The least time a step can take: arithmetic, memory traffic and network, each at its data-sheet speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apt_jax.trainops.plan.network import Traffic
from apt_jax.vgpu.scheduler.devices import Device


@dataclass(frozen=True)
class Roofline:
    """Lower bounds on the seconds of a step, as if nothing else were the limit.

    Attributes:
      compute: matrix products at the peak of `dtype`, the pipeline's idle time included.
      memory: state and saved activations through the device's memory once, weights once per use.
      network: collectives; of each the slowest link it crosses.
      by_link: collectives on each link.
      bubble: share of `compute` in which the average pipeline stage idles.
      dtype: whose peak was taken.
      host: what lies in host memory, to the device and back; both ways at once.
      mfu: the model's own FLOPs against the peak in the time of `bound`: no run can exceed it.
    """

    compute: float
    memory: float
    network: float
    by_link: Mapping[str, float]
    bubble: float
    dtype: str
    mfu: float
    host: float = 0.0

    @property
    def bound(self) -> float:
        """Seconds of a step in which everything overlaps perfectly."""
        return max(self.compute, self.memory, self.network, self.host)

    @property
    def serial(self) -> float:
        """Seconds of a step in which nothing overlaps, still at data-sheet speeds."""
        return self.compute + self.memory + self.network + self.host

    @property
    def limit(self) -> str:
        """What `bound` is: compute, memory, network or host."""
        return max(("compute", "memory", "network", "host"), key=lambda name: getattr(self, name))


def roofline(
    device: Device,
    *,
    dtype: str,
    flops: float,
    model_flops: float,
    traffic_bytes: float,
    collectives: Sequence[Traffic],
    bubble: float = 0.0,
    host_bytes: float = 0.0,
) -> Roofline:
    """Bounds for one step of one device.

    Args:
      device: its data sheet.
      dtype: of the operands of matrix products: fp32, bf16, fp16.
      flops: of one device, recomputation included.
      model_flops: of one device's share of the model, without.
      traffic_bytes: between one device and its memory, at least.
      collectives: of one step.
      bubble: share of the time that the average pipeline stage idles.
      host_bytes: between one device and its host's memory, in the direction that has more.
    """
    peak, name = device.peak("tf32" if dtype == "fp32" and "tf32" in device.flops else dtype)
    compute = flops / peak / (1.0 - bubble)
    by_link: dict[str, float] = {}
    for each in collectives:
        for link, seconds in each.seconds.items():
            by_link[link] = by_link.get(link, 0.0) + seconds
    network = sum(max(each.seconds.values(), default=0.0) for each in collectives)
    memory = traffic_bytes / device.bandwidth
    host = host_bytes / device.host_bandwidth if device.host_bandwidth else 0.0
    bound = max(compute, memory, network, host)
    mfu = model_flops / peak / bound if bound else 0.0
    return Roofline(compute, memory, network, by_link, bubble, name, mfu, host)
