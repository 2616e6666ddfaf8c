"""Values in a known order, each brought up while the one before is used."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from apt_jax.vgpu.memory.tiers.stack import VGPUStack
from apt_jax.vgpu.memory.tiers.tier import TierError


class LayerStreamer:
    """Sweeps over the layers of a model that lie in a stack, with read-ahead on the stack's background thread.

    The value in use and those read ahead are kept in level 0, so it must hold `ahead` + 1 of them; with less the
    values are still right, but are waited for.

        streamer = LayerStreamer(stack, keys)
        for params in streamer.forward():
            x = jax.block_until_ready(apply(params, x))
        print(streamer.stall_fraction)

    Finish the work on a value before the next one is asked for, as above: work that is only dispatched keeps the
    values it reads in memory.

    Attributes:
      keys: of the layers, first to last.
      ahead: values that are brought up while one is in use; 0: none.
      stall_seconds: waited for values in sweeps, in all.
      elapsed_seconds: of sweeps, in all.
    """

    def __init__(self, stack: VGPUStack, keys: Sequence[str], *, ahead: int = 1):
        """Raises TierError where the stack lacks one of the keys."""
        missing = [key for key in keys if key not in stack]
        if missing or not keys or ahead < 0:
            problem = f"no value '{missing[0]}' in the stack" if missing else f"{len(keys)} keys, read-ahead {ahead}"
            raise TierError(f"{problem}; store the layers first, and give at least one key and a read-ahead from 0")
        self.stack, self.keys, self.ahead = stack, tuple(keys), ahead
        self.stall_seconds = self.elapsed_seconds = 0.0

    @property
    def stall_fraction(self) -> float:
        """Stall time over the time of sweeps."""
        return self.stall_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0

    def forward(self) -> Iterator[Any]:
        """The layers from first to last; another such sweep is expected to follow."""
        return self._single(self.keys)

    def backward(self) -> Iterator[Any]:
        """The layers from last to first; another such sweep is expected to follow."""
        return self._single(self.keys[::-1])

    def _single(self, keys: Sequence[str]) -> Iterator[Any]:
        for (value,) in self.sweep([(key,) for key in keys]):
            yield value

    def sweep(self, plan: Sequence[tuple[str, ...]]) -> Generator[tuple[Any, ...], None, None]:
        """Groups of values in the order of `plan`, which is expected to repeat.

        Keys that do not exist yet when they come into the read-ahead are not read ahead; they have to exist when it is
        their turn, as the inputs that a forward sweep stores for the backward sweep.
        """
        started = time.perf_counter()
        flat = [key for group in plan for key in group]
        with self.stack.planned(flat, cyclic=True):
            asked = 0  # groups that were asked for
            for index, group in enumerate(plan):
                pinned: list[str] = []
                try:
                    waited = time.perf_counter()
                    values = tuple(self._pinned(key, pinned) for key in group)
                    self.stall_seconds += time.perf_counter() - waited
                    asked = max(asked, index + 1)
                    for later in plan[asked : index + 1 + self.ahead]:
                        for key in later:
                            if key in self.stack:
                                self.stack.prefetch(key)
                        asked += 1
                    yield values
                    del values
                finally:
                    for key in pinned:
                        if key in self.stack:
                            self.stack.unpin(key)
                    now = time.perf_counter()
                    self.elapsed_seconds += now - started
                    started = now

    def _pinned(self, key: str, pinned: list[str]) -> Any:
        value = self.stack.get(key, pin=True)
        pinned.append(key)
        return value
