"""Checkpoints of a run, written by Orbax: `<save_dir>/<step>/{params,optimizer,progress,meta}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from apt_jax.core.errors import CheckpointError
from apt_jax.trainops.engine.state import LossScale, TrainState

_EVAL_LOSS = "eval_loss"


@dataclass(frozen=True)
class Restored:
    """A restored step and the metadata saved with it."""

    state: TrainState
    meta: Mapping[str, Any]


class CheckpointManager:
    """Saves, lists and restores training state; keeps the newest and the best.

    A step becomes visible by one rename after all its files are written, so a killed process leaves
    no half step behind. Parameters, optimizer and progress are separate items: each restores alone.
    """

    def __init__(
        self,
        save_dir: str | Path,
        save_interval: int = 500,
        keep_last_n: int = 5,
        *,
        keep_best: bool = True,
        async_save: bool = True,
        read_only: bool = False,
    ):
        """Args:
        save_dir: created when missing.
        save_interval: steps between regular checkpoints (see `due`); 0: only when asked.
        keep_last_n: newest steps kept.
        keep_best: also keep the step with the lowest evaluation loss.
        async_save: write in the background.
        read_only: neither creates nor cleans anything.
        """
        self.save_dir = Path(save_dir).absolute()
        self.save_interval = save_interval
        self.on_saved: Callable[[int, Path], None] | None = None  # called once a step is on disk
        self._pending: list[int] = []
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last_n)]
        if keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: -metrics[_EVAL_LOSS],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.save_dir,
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=1,
                best_fn=lambda metrics: metrics[_EVAL_LOSS],  # makes Orbax keep the metrics; the policy decides
                best_mode="min",
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=async_save,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def due(self, step: int) -> bool:
        """Whether a regular checkpoint belongs after `step` finished steps."""
        return self.save_interval > 0 and step % self.save_interval == 0

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], eval_loss: float | None = None) -> None:
        """Saves one step (a no-op if that step exists); returns as soon as the arrays are copied.

        Args:
          step: finished optimizer steps.
          state: the training state; may be donated to the next step after this returns.
          meta: JSON-able description: config, plugins, versions.
          eval_loss: nats per token at this step, if it was evaluated; ranks the best.
        """
        if step in self._manager.all_steps():
            return
        self._report_finished()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.opt_state),
                progress=ocp.args.StandardSave(_progress(state)),
                meta=ocp.args.JsonSave(dict(meta)),
            ),
            metrics=None if eval_loss is None else {_EVAL_LOSS: float(eval_loss)},
        )
        self._pending.append(step)

    def restore(self, abstract: TrainState, step: int | None = None) -> Restored:
        """Restores a step (default: the newest) into the shapes and shardings of `abstract`.

        Raises:
          CheckpointError: no such step, or its arrays do not fit the model of this config.
        """
        step = self._resolve(step)
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(abstract.params),
                    optimizer=ocp.args.StandardRestore(abstract.opt_state),
                    progress=ocp.args.StandardRestore(_progress(abstract)),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # tensorstore's errors reach us through Orbax as bare ones
            raise self._unreadable(step, error) from error
        progress = found["progress"]
        state = TrainState(
            step=progress["step"],
            params=found["params"],
            opt_state=found["optimizer"],
            loss_scale=LossScale(progress["loss_scale"], progress["good_steps"]),
        )
        return Restored(state, found["meta"])

    def restore_params(self, abstract_params: Any, step: int | None = None) -> Any:
        """Restores only the parameters of a step."""
        step = self._resolve(step)
        try:
            return self._manager.restore(
                step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
            )["params"]
        except Exception as error:  # tensorstore's errors reach us through Orbax as bare ones
            raise self._unreadable(step, error) from error

    def meta(self, step: int | None = None) -> Mapping[str, Any]:
        """The metadata of a step (default: the newest)."""
        step = self._resolve(step)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:  # tensorstore's errors reach us through Orbax as bare ones
            raise self._unreadable(step, error) from error

    def steps(self) -> list[int]:
        """All finished steps, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest finished step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the lowest evaluation loss among those kept, or None."""
        losses = {s: m[_EVAL_LOSS] for s in self.steps() if (m := self._manager.metrics(s))}
        return min(losses, key=losses.__getitem__) if losses else None

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.save_dir / str(step)

    def discard_from(self, first: int) -> list[int]:
        """Removes the steps from `first` on; returns them."""
        self.wait()
        removed = [step for step in self.steps() if step >= first]
        for step in removed:
            self._manager.delete(step)
        return removed

    def wait(self) -> None:
        """Blocks until every save is on disk."""
        self._manager.wait_until_finished()
        self._report_finished()

    def close(self) -> None:
        """Waits and releases the background writer."""
        self.wait()
        self._manager.close()

    def _report_finished(self) -> None:
        # Orbax writes one step at a time: beginning the next save means the earlier one is on disk.
        if self._pending:
            self._manager.wait_until_finished()
        while self._pending:
            step = self._pending.pop(0)
            if self.on_saved:
                self.on_saved(step, self.path(step))

    def _resolve(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.save_dir}: holds no checkpoint; train first")
        if step is None:
            return steps[-1]
        if step not in steps:
            raise CheckpointError(f"{self.save_dir}: no checkpoint of step {step}; available: {steps}")
        return step

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        cause = re.sub(r"\s+", " ", str(error)).partition(". See full")[0][:300]
        return CheckpointError(
            f"{self.path(step)}: cannot be restored: {cause}; remove this folder to continue from an older "
            "step, or use the config it was written with"
        )


def _progress(state: TrainState) -> dict[str, jax.Array]:
    return {
        "step": state.step,
        "loss_scale": state.loss_scale.scale,
        "good_steps": state.loss_scale.good_steps,
    }
