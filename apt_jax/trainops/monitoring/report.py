"""`experiment_report.json`: the run in one file, rewritten while it goes on. Real values only."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apt_jax.trainops.monitoring.jsonl import METRICS_FILE, plain, read_jsonl
from apt_jax.trainops.monitoring.series import Series

_LOG = logging.getLogger(__name__)

REPORT_FILE = "experiment_report.json"
SCHEMA = "apt_jax.experiment_report/1"

# report key -> metric it collects
CURVES: Mapping[str, str] = {
    "train_loss": "loss",
    "eval_loss": "eval_loss",
    "learning_rates": "learning_rate",
    "grad_norms": "grad_norm",
    "tokens_per_second": "tokens_per_second",
}
_COST_SHARE = 100  # writing takes at most one part in this many of the run's time


class ExperimentReport:
    """Collects a run's facts and curves and writes them, whole or not at all.

    Keys: schema, name, status (running, finished, or why it ended), updated, config, environment, steps
    {done, max, started_at}, the curves of `CURVES` as [[step, value], …] (thinned to 2,000 points; all
    are in metrics.jsonl), tokens (learned from, since step 0), timing, traces, dataset_stats, samples
    {before, after}, final.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        name: str,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        dataset_stats: Mapping[str, Any],
        max_steps: int,
        start_step: int = 0,
        write_every: int = 10,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Takes up the curves of an earlier process from metrics.jsonl, up to `start_step`.

        Args:
          start_step: finished steps when this process began.
          write_every: logged steps between two writes (fewer writes if they would cost over 1 %).
        """
        self.path = workdir / REPORT_FILE
        self._clock, self._write_every = clock, write_every
        self._curves = {key: Series() for key in CURVES}
        self._logs, self._tokens, self._began = 0, 0.0, clock()
        self._written_at, self._write_cost = -float("inf"), 0.0
        self._fields: dict[str, Any] = {
            "schema": SCHEMA,
            "name": name,
            "status": "running",
            "config": plain(config),
            "environment": plain(environment),
            "dataset_stats": plain(dataset_stats),
            "steps": {"done": start_step, "max": max_steps, "started_at": start_step},
            "samples": {"before": [], "after": []},
            "timing": {},
            "traces": None,
            "final": {},
        }
        if start_step:
            self._take_up(workdir, start_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row of metrics (training, evaluation or both) and now and then writes the file.

        `total_tokens`, if given, is the number of tokens learned from since step 0.
        """
        self._collect(step, metrics)
        self._logs += 1
        if self._logs % self._write_every == 0 and self._affordable():
            self._try_to_write()

    def samples(self, when: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Records generations; `when` is before or after, each sample a mapping with prompt and completion.

        Those from before training are kept when the run is continued.
        """
        if when not in ("before", "after"):
            raise ValueError(f"when must be 'before' or 'after', not {when!r}")
        self._fields["samples"][when] = plain(samples)

    def finish(self, status: str, *, final: Mapping[str, float], traces: int | None, **timing: float) -> None:
        """Closes the report.

        Args:
          status: finished, stopped, early_stopping, failed, or a signal's name.
          final: last metrics of the run.
          traces: times the step was traced and compiled by this process.
          timing: e.g. `train_seconds`, `compile_seconds`, of this process.
        """
        self._fields.update(status=status, final=plain(final), traces=traces)
        self._fields["timing"].update(plain(timing))
        self._try_to_write()

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        curves = {key: plain(series.points()) for key, series in self._curves.items()}
        timing = {"process_seconds": self._clock() - self._began, **self._fields["timing"]}
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        tokens = int(self._tokens)
        return {**self._fields, "timing": timing, "tokens": tokens, "updated": updated, **curves}

    def write(self) -> None:
        """Replaces the file by one rename.

        Raises:
          OSError: it could not be written; the earlier one is still there.
        """
        began = self._clock()
        temporary = self.path.with_suffix(".json.tmp")
        temporary.write_text(
            json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8"
        )
        os.replace(temporary, self.path)
        self._written_at = self._clock()
        self._write_cost = self._written_at - began

    def _collect(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, metric in CURVES.items():
            if metrics.get(metric) is not None:
                self._curves[key].add(step, metrics[metric])
        self._tokens = metrics.get("total_tokens") or self._tokens
        self._fields["steps"]["done"] = step

    def _try_to_write(self) -> None:
        try:
            self.write()
        except OSError as error:  # a full disk, say: a run is worth more than its report
            _LOG.warning("%s: %s; the report is out of date, the run goes on", self.path, error.strerror)

    def _affordable(self) -> bool:
        return self._clock() - self._written_at >= _COST_SHARE * self._write_cost

    def _take_up(self, workdir: Path, start_step: int) -> None:
        for row in read_jsonl(workdir / METRICS_FILE):
            if isinstance(row.get("step"), int) and row["step"] <= start_step:
                self._collect(row["step"], row)
        self._fields["steps"]["done"] = start_step
        try:
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a run stopped before its first report
            return
        self._fields["samples"]["before"] = earlier.get("samples", {}).get("before", [])
