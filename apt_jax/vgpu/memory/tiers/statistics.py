"""What a stack counted and timed; all of it measured, none of it derived from what hardware promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apt_jax.vgpu.memory.tiers.tier import size


@dataclass(frozen=True)
class LevelStatistics:
    """One level.

    Attributes:
      name: the level's.
      capacity, used, peak: bytes: allowed, now, and the most at any moment, copies in flight included.
      tensors: arrays that lie here now.
      hits: requests for values that lay here.
      misses: requests for values that lay further down.
      promotions, demotions: values that left upwards, downwards.
      bytes_in, bytes_out: copied to and from here. A value that is dropped here because the level below still has
        its copy is a demotion of no bytes.
      seconds_in, seconds_out: that these copies took, whole copies from one level to the other.
    """

    name: str
    capacity: int
    used: int
    peak: int
    tensors: int
    hits: int
    misses: int
    promotions: int
    demotions: int
    bytes_in: int
    bytes_out: int
    seconds_in: float
    seconds_out: float

    @property
    def hit_rate(self) -> float:
        """Hits over requests that came this far down; 0 without any."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0

    @property
    def bandwidth_in(self) -> float | None:
        """Bytes/s of copies to here; None if there were none."""
        return self.bytes_in / self.seconds_in if self.seconds_in else None

    @property
    def bandwidth_out(self) -> float | None:
        """Bytes/s of copies from here; None if there were none."""
        return self.bytes_out / self.seconds_out if self.seconds_out else None


@dataclass(frozen=True)
class StackStatistics:
    """A stack.

    Attributes:
      levels: from the fastest.
      stall_seconds: that callers of `get`, `put` and `remove` waited for copies; background threads do not count.
      elapsed_seconds: since the stack was made, or the statistics were reset.
      prefetches: values that `prefetch` was asked for.
      failed_writes: values that stayed where they were because the level below failed to take them.
    """

    levels: Sequence[LevelStatistics]
    stall_seconds: float
    elapsed_seconds: float
    prefetches: int
    failed_writes: int

    @property
    def requests(self) -> int:
        """Calls of `get`."""
        return sum(level.hits for level in self.levels)

    @property
    def l0_hit_rate(self) -> float:
        """Requests that found their value in level 0, those it was prefetched for included."""
        return self.levels[0].hit_rate

    @property
    def promotions(self) -> int:
        """Values that went up."""
        return sum(level.promotions for level in self.levels)

    @property
    def demotions(self) -> int:
        """Values that went down."""
        return sum(level.demotions for level in self.levels)

    @property
    def tensors(self) -> int:
        """Arrays in all levels."""
        return sum(level.tensors for level in self.levels)

    @property
    def stall_fraction(self) -> float:
        """Stall time over elapsed time."""
        return self.stall_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0


def render(statistics: StackStatistics) -> str:
    """The block that `print_stats` prints: the stack, then each level."""
    s = statistics
    lines = [
        "vGPU stack",
        f"  requests     {s.requests:,}",
        f"  L0 hit rate  {s.l0_hit_rate:.1%}",
        f"  promotions   {s.promotions:,}",
        f"  demotions    {s.demotions:,}",
        f"  tensors      {s.tensors:,}",
        f"  stalls       {s.stall_seconds:.3f} s of {s.elapsed_seconds:.3f} s ({s.stall_fraction:.1%})",
    ]
    if s.failed_writes:
        lines.append(f"  failed       {s.failed_writes:,} writes; the values stayed where they were")
    for index, level in enumerate(s.levels):
        lines += [
            f"L{index} {level.name}",
            f"  used         {size(level.used)} of {size(level.capacity)} ({level.used / level.capacity:.1%}), "
            f"at most {size(level.peak)}",
            f"  tensors      {level.tensors:,}",
            f"  hits         {level.hits:,} of {level.hits + level.misses:,} ({level.hit_rate:.1%})",
            f"  moved        {level.promotions:,} up, {level.demotions:,} down",
            f"  in           {size(level.bytes_in)}{_speed(level.bandwidth_in)}",
            f"  out          {size(level.bytes_out)}{_speed(level.bandwidth_out)}",
        ]
    return "\n".join(lines)


def _speed(bandwidth: float | None) -> str:
    return "" if bandwidth is None else f" at {size(bandwidth)}/s"
