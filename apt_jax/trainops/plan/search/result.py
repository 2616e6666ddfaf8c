"""What a search found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from apt_jax.trainops.plan.roofline import Roofline
from apt_jax.trainops.plan.search.bound import Sketch
from apt_jax.trainops.plan.search.candidates import Candidate


@dataclass(frozen=True)
class Entry:
    """A setting with its closed form and, where it was compiled, the compiler's figures.

    Attributes:
      sketch: the closed form.
      own: it is the config's own setting.
      memory: bytes of one device by the compiler; None: not compiled.
      bounds: of the compiled step; None: not compiled.
      host: bytes of its share in host memory by the compiler; None: not compiled.
      flops_counted: the compiler's products were counted; else the time of compute is the closed form's.
      seconds: what compiling took.
      refused: why it could not be compiled.
    """

    sketch: Sketch
    own: bool = False
    memory: int | None = None
    bounds: Roofline | None = None
    host: int | None = None
    flops_counted: bool = True
    seconds: float = 0.0
    refused: str = ""

    @property
    def candidate(self) -> Candidate:
        return self.sketch.candidate

    @property
    def compiled(self) -> bool:
        """Whether its figures are the compiler's."""
        return self.memory is not None

    @property
    def bytes(self) -> int:
        """Of one device: the compiler's, else the closed form's."""
        return self.sketch.memory if self.memory is None else self.memory

    @property
    def host_bytes(self) -> int:
        """In host memory, of one device: the compiler's, else the closed form's."""
        return self.sketch.host if self.host is None else self.host

    @property
    def roofline(self) -> Roofline:
        """Of the compiled step, else the closed form's."""
        return self.sketch.bounds if self.bounds is None else self.bounds

    @property
    def point(self) -> tuple[float, float]:
        """(bytes of a device, seconds of a step): less is better."""
        return self.bytes, self.roofline.bound


@dataclass(frozen=True)
class SearchResult:
    """Everything that a search looked at.

    Attributes:
      profile, target, label, wiring: what for what.
      capacity: bytes of a device that a program can have.
      batch_size, length: sequences of a step, tokens of each.
      best: the Pareto list, fastest first.
      tried: every entry compiled, fitting or not, or refused; the same as `best` without compiling.
      own: the config's own setting; None where its sizes are for another count.
      considered: settings in all.
      pruned: of them, how many were dropped by reason; the rest could have been compiled.
      differing: config values of the best entry that the config has otherwise.
      compiling: whether the compiler was asked.
      notes: what else to know.
    """

    profile: str
    target: str
    label: str
    wiring: str
    capacity: int
    batch_size: int
    length: int
    best: tuple[Entry, ...]
    tried: tuple[Entry, ...]
    own: Entry | None
    considered: int
    pruned: Mapping[str, int]
    differing: Mapping[str, Any]
    compiling: bool
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether anything does."""
        return bool(self.best)

    @property
    def options(self) -> tuple[str, ...]:
        """The best entry, as one would give it on the command line."""
        return tuple(f"--config.{key}={_text(value)}" for key, value in self.differing.items())

    def tokens_per_second(self, entry: Entry) -> float:
        """Of all devices, at most."""
        bound = entry.roofline.bound
        return self.batch_size * self.length / bound if bound else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes and seconds."""
        return {
            "profile": self.profile,
            "target": self.target,
            "capacity": self.capacity,
            "batch_size": self.batch_size,
            "length": self.length,
            "compiled": self.compiling,
            "considered": self.considered,
            "pruned": dict(self.pruned),
            "fits": self.fits,
            "best": [self._entry(entry) for entry in self.best],
            "tried": [self._entry(entry) for entry in self.tried],
            "own": None if self.own is None else self._entry(self.own),
            "options": list(self.options),
            "notes": list(self.notes),
        }

    def _entry(self, entry: Entry) -> dict[str, Any]:
        candidate, bounds, sketch = entry.candidate, entry.roofline, entry.sketch
        return {
            "mesh": candidate.layout.sizes,
            "zero_stage": candidate.layout.zero_stage if candidate.layout.sizes["fsdp"] > 1 else 0,
            "remat": candidate.config.model.remat_policy,
            "offload": candidate.offload,
            "host_bytes": entry.host_bytes,
            "accumulation": candidate.config.training.gradient_accumulation_steps,
            "schedule": candidate.schedule,
            "values": dict(candidate.values),
            "own": entry.own,
            "compiled": entry.compiled,
            "bytes": entry.bytes,
            "fits": not entry.refused and entry.bytes <= self.capacity,
            "step_seconds_bound": bounds.bound,
            "step_seconds_serial": bounds.serial,
            "mfu_bound": bounds.mfu,
            "tokens_per_second_bound": self.tokens_per_second(entry),
            "limited_by": bounds.limit,
            "bounds": asdict(bounds),
            "flops_counted": entry.flops_counted,
            "closed_form": {"bytes": sketch.memory, **asdict(sketch.bounds), "bound": sketch.bounds.bound},
            "compile_seconds": entry.seconds,
            "refused": entry.refused,
        }


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)
