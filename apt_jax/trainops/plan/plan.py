"""What a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from apt_jax.trainops.distributed.pipeline.table import TickTable, make_table
from apt_jax.trainops.plan.compiled import Allocated
from apt_jax.trainops.plan.memory import Part
from apt_jax.trainops.plan.network import Traffic
from apt_jax.trainops.plan.roofline import Roofline


@dataclass(frozen=True)
class Flops:
    """FLOPs of one step.

    Attributes:
      model: of all devices, what the model needs.
      device: of one device, recomputation included.
      counted: `device` was counted in the compiled program; else it is the model's share.
    """

    model: float
    device: float
    counted: bool


@dataclass(frozen=True)
class Remedy:
    """A change of the config, and what the compiler makes of it.

    Attributes:
      changes: options of the command line.
      total: bytes of one device; None: it cannot be compiled so.
      fits: within the device's memory.
      bound: seconds of a step, at least; None where it was not found out.
      note: why there is no total.
    """

    changes: tuple[str, ...]
    total: int | None
    fits: bool
    bound: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """A step compiled for a target: it compiles, and fits or not. Nothing was run.

    Attributes:
      profile, target, label, wiring: what for what.
      devices: in the mesh.
      num_params, vocab_size, vocab_from, length, batch_size, accumulation, optimizer, remat: of the run.
      precision: compute dtype.
      kernel: attention kernel, why.
      strategy, zero_stage, mesh: how it is spread.
      levels: slowest link along each mesh axis larger than 1.
      capacity, nominal: bytes of a device that a program can have; as sold.
      allocated: bytes of one device by the compiler.
      parts: the same by cause.
      flops, traffic, bounds: work, communication and the least time of a step.
      warnings: worth reading before paying.
      seconds: what planning took, by stage.
      matmuls: how quantized matrix products are made, a line each.
      residuals: how activations are kept for the backward pass, a line each.
      remedies: changes that were tried because it does not fit.
      schedule: of the pipeline; empty without stages.
      chunks: groups of layers per stage.
      alike: all stages run whatever any stage does.
    """

    profile: str
    target: str
    label: str
    wiring: str
    devices: int
    num_params: int
    vocab_size: int
    vocab_from: str
    length: int
    batch_size: int
    accumulation: int
    optimizer: str
    remat: str
    precision: str
    kernel: tuple[str, str]
    strategy: str
    zero_stage: int
    mesh: Mapping[str, int]
    levels: Mapping[str, str]
    capacity: int
    nominal: int
    allocated: Allocated
    parts: Mapping[str, Part]
    flops: Flops
    traffic: tuple[Traffic, ...]
    bounds: Roofline
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    remedies: tuple[Remedy, ...] = field(default=())
    matmuls: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()
    schedule: str = ""
    chunks: int = 1
    alike: bool = False

    @property
    def excess(self) -> int:
        """Bytes beyond the device's memory; at most 0 if it fits."""
        return self.allocated.total - self.capacity

    @property
    def fits(self) -> bool:
        """Within the memory of a device."""
        return self.excess <= 0

    @property
    def verdict(self) -> str:
        """`compiles and fits`, or by how much it does not."""
        if self.fits:
            return f"compiles and fits: {-self.excess / 2**30:.1f} GiB left"
        return f"compiles, but does not fit by {self.excess / 2**30:.1f} GiB"

    @property
    def tokens_per_second(self) -> float:
        """Of all devices, at most."""
        return self.batch_size * self.length / self.bounds.bound if self.bounds.bound else 0.0

    @property
    def table(self) -> TickTable | None:
        """The pipeline's schedule; None without stages."""
        if not self.schedule:
            return None
        return make_table(self.schedule, self.mesh["pipe"], self.accumulation, self.chunks)

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes, FLOPs and seconds."""
        return {
            **asdict(self),
            "total": self.allocated.total,
            "excess": self.excess,
            "fits": self.fits,
            "verdict": self.verdict,
            "step_seconds_bound": self.bounds.bound,
            "step_seconds_serial": self.bounds.serial,
            "limited_by": self.bounds.limit,
            "mfu_bound": self.bounds.mfu,
            "tokens_per_second_bound": self.tokens_per_second,
        }
