"""Trackers: where numbers and texts of a run are sent, and how a broken one is kept from hurting it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

FAILURES_ALLOWED = 3


@runtime_checkable
class Tracker(Protocol):
    """Receives a run's metrics on the host, one step late, from one thread.

    A factory `(workdir: Path, config: Config) -> Tracker` is registered through `apt_trackers`.
    It must not write anything before `start`.
    """

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Opens the sink.

        Args:
          config: the whole configuration as plain JSON values.
          step: finished steps of the run that is continued, 0 for a new one; whatever an earlier
            process recorded beyond this step will be sent again.
        """
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records values after `step` finished steps; evaluation metrics begin with `eval_`."""
        ...

    def text(self, step: int, name: str, value: str) -> None:
        """Records a text, such as a generated sample."""
        ...

    def close(self) -> None:
        """Flushes and closes; called once, also after a failed run."""
        ...


class MetricsLogger:
    """Sends everything to every tracker and survives the failure of any.

    A tracker that raises is reported once; after three failures in all it is dropped. A `kept`
    tracker (the local record) is never dropped: it is tried again every time, so that it goes on
    when, say, the disk has room again.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        *,
        warn: Callable[[str], None],
        kept: frozenset[str] = frozenset({"jsonl"}),
    ):
        """Args:
        trackers: name -> tracker, served in this order.
        warn: is given one line when a tracker first fails and when it is dropped.
        kept: names that are never dropped.
        """
        self._trackers = dict(trackers)
        self._kept = kept
        self._warn = warn
        self.failures: dict[str, int] = dict.fromkeys(trackers, 0)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the trackers still served."""
        return tuple(self._trackers)

    def start(self, config: Mapping[str, Any], step: int = 0) -> None:
        """Opens all trackers; one that does not open is dropped at once unless it is kept."""
        for name, tracker in tuple(self._trackers.items()):
            try:
                tracker.start(config, step)
            except Exception as error:
                self._failed(name, error, drop=name not in self._kept)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends values to every tracker; see `Tracker.log`."""
        self._each(lambda tracker: tracker.log(step, metrics))

    def text(self, step: int, name: str, value: str) -> None:
        """Sends a text to every tracker; see `Tracker.text`."""
        self._each(lambda tracker: tracker.text(step, name, value))

    def close(self) -> None:
        """Closes every tracker."""
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in tuple(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                self._failed(name, error)

    def _failed(self, name: str, error: Exception, drop: bool = False) -> None:
        self.failures[name] += 1
        count = self.failures[name]
        drop = drop or (count >= FAILURES_ALLOWED and name not in self._kept)
        if drop:
            del self._trackers[name]
        if drop or count == 1:
            verdict = "dropped" if drop else "the run goes on"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"tracker '{name}' failed ({reason}); {verdict}")


def build_trackers(
    names: tuple[str, ...],
    resolve: Callable[[str], Callable[[Path, Any], Tracker]],
    workdir: Path,
    config: Any,
) -> dict[str, Tracker]:
    """Makes the named trackers in order, each once.

    Args:
      names: registered names; `jsonl` belongs first.
      resolve: `plugins.registry("trackers").resolve`, which raises PluginError for an unknown name.
    """
    return {name: resolve(name)(workdir, config) for name in dict.fromkeys(names)}
