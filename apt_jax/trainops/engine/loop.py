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
    """The loss stopped being a number."""

    exit_code = 3


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

    def should_stop(self, loss: float) -> bool:
        if loss < self.best - self.min_delta:
            self.best, self.since = loss, 0
        else:
            self.since += 1
        return bool(self.patience) and self.since >= self.patience

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
      host_seconds: time the device could have waited for Python: reading, logging, observers, batches.
      step_seconds: wall time of all steps but the first, which compiles.
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
    pending: tuple[int, Any] | None = None
    waiting = 0.0
    epoch = math.floor(plan.start / plan.steps_per_epoch)
    watcher.epoch_begin(epoch)
    began: float | None = None  # when the step that is computing now began; unknown for the one that compiles
    timed_from = None
    latest: Mapping[str, float] = {}

    for done in range(plan.start + 1, plan.stop + 1):
        before = time.perf_counter()
        batch = program.put_batch(next(batches))
        waiting = time.perf_counter() - before
        result.state, metrics = program.train_step(result.state, batch)
        result.step = done
        if pending:
            latest, began, host = _publish(pending, watcher, began, waiting)
            result.host_seconds += host + waiting
        pending = (done, metrics)

        due = plan.eval_interval and done % plan.eval_interval == 0
        final = done == plan.last
        new_epoch = math.floor(done / plan.steps_per_epoch)
        if due or final or stop.requested or done == plan.stop or new_epoch != epoch:
            latest, began, host = _publish(pending, watcher, began, waiting)
            result.host_seconds += host
            pending = None
        eval_loss = None
        if evaluate and (due or final):
            scores = evaluate(result.state)
            result.evaluations.append((done, scores))
            watcher.evaluated(done, scores)
            eval_loss = scores["eval_loss"]
            if early.should_stop(eval_loss) and not final:
                result.reason = "early_stopping"
        if new_epoch != epoch:
            watcher.epoch_end(epoch, latest)
            epoch = new_epoch
            if not final:
                watcher.epoch_begin(epoch)
        if stop.requested and not final:
            result.reason = stop.requested.name
        elif done == plan.stop and not final and result.reason == "finished":
            result.reason = "stopped"
        ending = result.reason != "finished" or final
        save(done, result.state, eval_loss, ending)
        if due or ending:
            began = time.perf_counter()  # evaluation and a blocking save are not step time
        if timed_from is None:
            jax.block_until_ready(metrics)  # the first step compiles; it is left out of the timing
            timed_from = began = time.perf_counter()
        if ending:
            break
    if timed_from is not None:
        result.step_seconds = time.perf_counter() - timed_from
    return result


def _publish(
    pending: tuple[int, Any], watcher: Watcher, began: float | None, waiting: float
) -> tuple[Mapping[str, float], float, float]:
    """Reads a step's metrics (blocking until it is done) and tells the watcher.

    Returns the metrics, the time it became ready, and the seconds the host then took.
    """
    step, metrics = pending
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    ready = time.perf_counter()
    if began is not None:
        values["step_seconds"] = ready - began
        values["tokens_per_second"] = values["tokens"] / values["step_seconds"]
    values["data_wait_seconds"] = waiting
    if not math.isfinite(values["loss"]):
        raise Divergence(
            f"step {step}: the loss is {values['loss']}; the last checkpoint is untouched: continue from it "
            "with a lower training.learning_rate, or train with mixed_precision=fp32"
        )
    watcher.step(step, values)
    return values, ready, time.perf_counter() - ready
