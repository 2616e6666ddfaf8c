"""What a run says about itself before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunHeader:
    """Facts shown at the start of a run, also written to the event log.

    Attributes:
      name: profile or experiment name.
      devices: e.g. "8 x cpu".
      mesh: axis -> size; axes of size 1 are left out of the display.
      strategy: how the run is spread over them.
      versions: package -> version, jax first.
      plugins: name and version of each active plugin, in order.
      parameters: number of weights.
      architecture: e.g. "apt: 6 layers, width 256, 8 heads, vocabulary 512".
      kernels: what was chosen -> choice and reason, e.g. {"attention": "dense (cpu)"}.
      batch: the arithmetic of one optimizer step, from `batch_arithmetic`.
      data: name -> figure, e.g. {"documents": "5,000"}.
      precision: compute, parameter and loss dtypes.
      workdir: as the user gave it.
      resume: "new run" or "continues at step n of m".
      memory: what lies elsewhere than on the devices.
      determinism: within which limits two runs are bitwise equal.
    """

    name: str
    devices: str
    versions: Mapping[str, str]
    parameters: int
    batch: str
    precision: str
    workdir: str
    resume: str = "new run"
    architecture: str = ""
    mesh: Mapping[str, int] = field(default_factory=dict)
    strategy: str = ""
    plugins: tuple[str, ...] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    memory: str = ""
    determinism: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """(label, text) in display order, without empty ones."""
        mesh = " ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1)
        rows = [
            ("run", self.name),
            ("resume", self.resume),
            ("workdir", self.workdir),
            ("devices", self.devices),
            ("mesh", mesh or ("one device" if self.mesh else "")),
            ("strategy", self.strategy),
            ("versions", ", ".join(f"{k} {v}" for k, v in self.versions.items())),
            ("plugins", ", ".join(self.plugins) or "none"),
            ("model", self.architecture),
            ("parameters", f"{self.parameters:,}"),
            ("kernels", "; ".join(f"{k}: {v}" for k, v in self.kernels.items())),
            ("precision", self.precision),
            ("memory", self.memory),
            ("batch", self.batch),
            ("data", ", ".join(f"{k} {v}".strip() for k, v in self.data.items())),
            ("determinism", self.determinism),
        ]
        return [(label, text) for label, text in rows if text]


def batch_arithmetic(batch_size: int, accumulation: int, shards: int, sequence_length: int) -> str:
    """Spells out one optimizer step: `16 sequences = 2 microbatches x 4 data shards x 2, …`.

    Args:
      batch_size: sequences per optimizer step over all devices, a multiple of the product of the next two.
      accumulation: microbatches per step.
      shards: parts a microbatch is divided into over devices.
      sequence_length: tokens of one sequence.
    """
    each = batch_size // (accumulation * shards)
    return (
        f"{batch_size:,} sequences = {accumulation} microbatch{'es' * (accumulation > 1)} x {shards} data "
        f"shard{'s' * (shards > 1)} x {each}; {batch_size * sequence_length:,} tokens a step"
    )
