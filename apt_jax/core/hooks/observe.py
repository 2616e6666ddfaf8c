"""Observe hooks: called on the host."""

# pyright: reportReturnType=false
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt_jax.core.hookkinds import observe as _observe
from apt_jax.core.hooks.types import Metrics, Run


@_observe
def apt_train_begin(run: Run) -> None:
    """Before the first step of this process, everything being built.

    Example: `print(run.num_params)`
    """


@_observe
def apt_train_end(run: Run, report: Mapping[str, Any]) -> None:
    """After the last step, however the run ended short of an exception.

    Example: `(run.workdir / "done").write_text(str(report["steps"]))`
    """


@_observe
def apt_epoch_begin(run: Run, epoch: int) -> None:
    """Before the first step of an epoch; `epoch` counts from 0.

    Example: `print("epoch", epoch)`
    """


@_observe
def apt_epoch_end(run: Run, epoch: int, metrics: Metrics) -> None:
    """After the last step of an epoch, with the metrics of that step.

    Example: `print(epoch, metrics["loss"])`
    """


@_observe
def apt_step_end(run: Run, step: int, metrics: Metrics) -> None:
    """After every optimizer step, one step late so that the device never waits; `step` counts from 1.

    `metrics` has `loss` (nats per token), `tokens`, `grad_norm`, `learning_rate`, `step_seconds` …

    Example: `if metrics["loss"] > 10: print("step", step)`
    """


@_observe
def apt_eval_end(run: Run, step: int, metrics: Metrics) -> None:
    """After an evaluation; `metrics` has at least `eval_loss` (nats per token).

    Example: `print(step, metrics["eval_loss"])`
    """


@_observe
def apt_checkpoint_saved(run: Run, step: int, path: Path) -> None:
    """Once a checkpoint is complete on disk; `path` is its folder.

    Example: `upload(path)`
    """


@_observe
def apt_failure(run: Run, error: BaseException) -> None:
    """When an exception ends the run; it is raised again afterwards.

    Example: `notify(str(error))`
    """
