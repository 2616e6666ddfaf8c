"""The loop around the compiled step.

The host runs one step behind the device: while step n computes, the metrics of step n−1 are read,
logged and shown to observers, and batch n+1 is made. Python therefore costs nothing as long as it is
quicker than a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax

from apt_jax.core.errors import AptError
from apt_jax.trainops.engine.interrupt import StopSignal
from apt_jax.trainops.engine.program import Program
from apt_jax.trainops.engine.state import TrainState


class Divergence(AptError):
    """The loss of `step` is not a number, so the weights after the step before are of no use."""

    exit_code = 3

    def __init__(self, step: int, loss: float):
        super().__init__(
            f"step {step}: the loss is {loss}; earlier checkpoints are kept: continue with a lower "
            "training.learning_rate or mixed_precision=fp32, and if that diverges too, remove the newest of them"
        )
        self.step = step


class Watcher(Protocol):
    """What the loop tells the outside; every call is on the host, between steps."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def epoch_begin(self, epoch: int) -> None: ...

    def epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True)
class LoopPlan:
    """When things happen, in finished optimizer steps.

    Attributes:
      start: steps finished before.
      stop: steps after which this process stops.
      last: steps of the whole run.
      steps_per_epoch: for the epoch events.
      eval_interval: 0: only after `last`.
    """

    start: int
    stop: int
    last: int
    steps_per_epoch: float
    eval_interval: int


@dataclass
class EarlyStopping:
    """Counts evaluations since the loss last improved; `as_dict` is what a checkpoint keeps of it.

    Attributes:
      patience: evaluations without an improvement of `min_delta` before stopping; 0: never.
      min_delta: nats per token.
      best: lowest evaluation loss that counted.
      since: evaluations since.
    """

    patience: int
    min_delta: float
    best: float = math.inf
    since: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return bool(self.patience) and self.since >= self.patience

    def should_stop(self, loss: float) -> bool:
        """Counts an evaluation; returns whether patience has run out."""
        if loss < self.best - self.min_delta:
            self.best, self.since = loss, 0
        else:
            self.since += 1
        return self.exhausted

    def as_dict(self) -> dict[str, float | None]:
        return {"best": self.best if math.isfinite(self.best) else None, "since": self.since}

    def restore(self, kept: Mapping[str, float | None]) -> None:
        best = kept["best"]
        self.best, self.since = math.inf if best is None else best, int(kept["since"] or 0)


@dataclass
class LoopResult:
    """How the loop ended.

    Attributes:
      state: the final state.
      step: finished steps.
      reason: "finished", "stopped" (asked to), "early_stopping" or a signal's name.
      evaluations: (step, metrics) of every evaluation.
      host_seconds: Python's time between steps: batches, logging, observers. Most of it passes while
        the device computes.
      step_seconds: wall time of the steps, without the first (it compiles), evaluations and saves.
    """

    state: TrainState
    step: int
    reason: str = "finished"
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    host_seconds: float = 0.0
    step_seconds: float = 0.0


def run_loop(
    program: Program,
    state: TrainState,
    batches: Iterator[Mapping[str, Any]],
    plan: LoopPlan,
    watcher: Watcher,
    *,
    evaluate: Callable[[TrainState], dict[str, float]] | None,
    early: EarlyStopping,
    save: Callable[[int, TrainState, float | None, bool], None],
    stop: StopSignal,
) -> LoopResult:
    """Trains from `plan.start` to `plan.stop`.

    Args:
      batches: yields batch `plan.start` first.
      evaluate: held-out metrics of a state; must contain `eval_loss`.
      early: judges every evaluation.
      save: called with (step, state, eval_loss or None, forced) after every step; decides itself
        whether a checkpoint is due unless forced.
      stop: checked after every step.

    Raises:
      Divergence: the loss is NaN or infinite (fp16 overflow is handled by the loss scale and is none).
    """
    result = LoopResult(state, plan.start)
    lag = _Lag(watcher, result)
    epoch = math.floor(plan.start / plan.steps_per_epoch)
    watcher.epoch_begin(epoch)

    for done in range(plan.start + 1, plan.stop + 1):
        before = time.perf_counter()
        batch = program.put_batch(next(batches))
        waited = time.perf_counter() - before
        result.state, metrics = program.train_step(result.state, batch)
        result.step = done
        lag.push(done, metrics, waited)
        asked = stop.at(done)

        final = done == plan.last
        due = bool(plan.eval_interval) and done % plan.eval_interval == 0
        next_epoch = math.floor(done / plan.steps_per_epoch)
        first = done == plan.start + 1  # it compiled, and someone is waiting to see it
        if due or first or asked or done == plan.stop or next_epoch != epoch:
            lag.flush()
        eval_loss = None
        if evaluate and (due or final):
            scores = evaluate(result.state)
            result.evaluations.append((done, scores))
            watcher.evaluated(done, scores)
            eval_loss = scores["eval_loss"]
            if early.should_stop(eval_loss) and not final:
                result.reason = "early_stopping"
        if next_epoch != epoch:
            watcher.epoch_end(epoch, lag.latest)
            epoch = next_epoch
            if not final:
                watcher.epoch_begin(epoch)
        if not final and result.reason == "finished":
            if asked:
                result.reason = asked.name
            elif done == plan.stop:
                result.reason = "stopped"
        ending = final or result.reason != "finished"
        save(done, result.state, eval_loss, ending)
        if ending:
            break
        if due or first:
            lag.restart_clock()
    return result


class _Lag:
    """Holds the metrics of the newest step back until the next one is on its way."""

    def __init__(self, watcher: Watcher, result: LoopResult):
        self.latest: Mapping[str, float] = {}
        self._watcher, self._result = watcher, result
        self._pending: tuple[int, Any, float] | None = None
        self._began: float | None = None  # when the pending step began; unknown for one that compiles

    def push(self, step: int, metrics: Any, waited: float) -> None:
        """Takes the metrics of a step just dispatched and publishes those of the one before."""
        self.flush()
        self._pending = step, metrics, waited

    def flush(self) -> None:
        """Waits for the pending step and tells the watcher."""
        if self._pending is None:
            return
        step, metrics, waited = self._pending
        self._pending = None
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        ready = time.perf_counter()
        if self._began is not None:
            values["step_seconds"] = ready - self._began
            values["tokens_per_second"] = values["tokens"] / values["step_seconds"]
            self._result.step_seconds += values["step_seconds"]
        self._began = ready
        values["data_wait_seconds"] = waited
        if not math.isfinite(values["loss"]):
            raise Divergence(step, values["loss"])
        self.latest = values
        self._watcher.step(step, values)
        self._result.host_seconds += waited + time.perf_counter() - ready

    def restart_clock(self) -> None:
        """Leaves out what happened since the last step: an evaluation, a blocking save, the compilation."""
        self._began = time.perf_counter()
