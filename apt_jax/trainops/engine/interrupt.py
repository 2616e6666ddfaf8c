"""Stopping at a step boundary when asked to by a signal."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from apt_jax.trainops.distributed.peers import Peers


class StopSignal:
    """While active, the first SIGINT or SIGTERM sets `requested`; a second one acts as usual.

    Signal handlers belong to the main thread; elsewhere this does nothing. A signal to one process of a job
    stops all of them after the same step.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self.requested: signal.Signals | None = None
        self._peers = peers or Peers()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def at(self, step: int) -> signal.Signals | None:
        """Called once per step, when `step` has begun: the signal to stop for after it, or None."""
        if self._peers.count == 1:
            return self.requested
        if self.requested:
            self._peers.ask_to_stop(self.requested.name)
        reason = self._peers.stops_at(step)
        return signal.Signals[reason] if reason else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()
