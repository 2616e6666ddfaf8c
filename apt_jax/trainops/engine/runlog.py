"""Everything a run tells the outside, behind the loop's `Watcher`: console, records, observers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from apt_jax.core.config import to_dict
from apt_jax.trainops.engine.context import RunContext
from apt_jax.trainops.monitoring import (
    EventLog,
    ExperimentReport,
    MetricsLogger,
    RunConsole,
    RunHeader,
    build_trackers,
    draw_report,
    make_console,
)

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


class RunLog:
    """Fans out steps, evaluations, checkpoints and samples.

    Only process 0 shows and records; every process calls its observers. Without a workdir nothing is
    recorded, but the console and the observers still see the run.
    """

    def __init__(
        self,
        run: RunContext,
        plugins: Plugins,
        *,
        environment: Mapping[str, Any],
        dataset_stats: Mapping[str, Any],
        tokens: float = 0.0,
    ):
        """Args:
        run: the run's facts.
        plugins: its observers and trackers.
        environment: recorded in the report.
        dataset_stats: recorded in the report.
        tokens: read in the steps before `run.start_step`.
        """
        config = run.config
        self.run, self._plugins, self._config = run, plugins, config
        self._interval = config.monitoring.metrics_interval
        self._last = config.training.max_steps
        main = jax.process_index() == 0
        mode = config.monitoring.console if main else "off"
        self.console: RunConsole = make_console(mode, self._last, config.profile.name)
        self._latest: tuple[int, dict[str, float]] = (run.start_step, {})
        self._logged = run.start_step
        self.tokens = tokens
        self._events = self._metrics = self.report = None
        if run.workdir is not None and main:
            self._events = EventLog(run.workdir)
            names = ("jsonl", *(("tensorboard",) if config.monitoring.tensorboard else ()))
            self._metrics = MetricsLogger(
                build_trackers(
                    (*names, *config.monitoring.trackers),
                    plugins.registry("trackers").resolve,
                    run.workdir,
                    config,
                ),
                warn=self.note,
            )
            self._metrics.start(to_dict(config), run.start_step)
            self.report = ExperimentReport(
                run.workdir,
                name=config.profile.name,
                config=to_dict(config),
                environment=environment,
                dataset_stats=dataset_stats,
                max_steps=self._last,
                start_step=run.start_step,
            )

    def begin(self, header: RunHeader) -> None:
        self.console.header(header)
        self.event("begin", step=self.run.start_step, **dict(header.rows()))
        self._plugins.observe("apt_train_begin", run=self.run)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tokens += metrics["tokens"]
        values = {**metrics, "total_tokens": self.tokens}
        self._latest = (step, values)
        self._plugins.observe("apt_step_end", run=self.run, step=step, metrics=values)
        # The first step of a process is shown at once: someone is waiting for it.
        if step % self._interval == 0 or step in (self.run.start_step + 1, self._last):
            self._record(step, values)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._logged != step:
            self._record(step, self._latest[1])
        self._send(step, metrics)
        self.console.evaluated(step, metrics)
        self._plugins.observe("apt_eval_end", run=self.run, step=step, metrics=metrics)

    def epoch_begin(self, epoch: int) -> None:
        self._plugins.observe("apt_epoch_begin", run=self.run, epoch=epoch)

    def epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._plugins.observe("apt_epoch_end", run=self.run, epoch=epoch, metrics=metrics)

    def checkpoint_saved(self, step: int, path: Path) -> None:
        self.event("checkpoint", step=step)
        # Within the run's own folder the short name says enough.
        if self.run.workdir is not None and path.is_relative_to(self.run.workdir):
            self.console.checkpoint(step, str(path.relative_to(self.run.workdir)))
        self._plugins.observe("apt_checkpoint_saved", run=self.run, step=step, path=path)

    def samples(self, when: str, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        for sample in samples:
            self.note(f"sample {when}: {sample['prompt']!r} -> {sample['completion']!r}")
            if self._metrics:
                self._metrics.text(step, f"sample_{when}", f"{sample['prompt']} → {sample['completion']}")
        if self.report:
            self.report.samples(when, samples)

    def note(self, text: str) -> None:
        self.console.note(text)
        self.event("note", text=text)

    @property
    def latest(self) -> dict[str, float]:
        """The newest training metrics."""
        return self._latest[1]

    def event(self, kind: str, **fields: Any) -> None:
        if self._events:
            self._events.write(kind, **fields)

    def failed(self, error: BaseException) -> None:
        self.event("failure", error=f"{type(error).__name__}: {error}")
        self._plugins.observe("apt_failure", run=self.run, error=error)
        if self.report:
            self.report.finish("failed", final=self._latest[1], traces=None)
        self.close()

    def finish(
        self, status: str, *, final: Mapping[str, float], traces: int | None, timing: Mapping[str, float]
    ) -> dict[str, Any]:
        """Closes all records, draws the plot and returns the report."""
        self.event("end", status=status, step=self._latest[0])
        if self.report:
            self.report.finish(status, final=final, traces=traces, **timing)
            report = self.report.as_dict()
            if self._config.monitoring.plot and self.run.workdir is not None:
                draw_report(report, self.run.workdir, self.note)
        else:
            report = {"status": status, "final": dict(final), "traces": traces, "timing": dict(timing)}
        self._plugins.observe("apt_train_end", run=self.run, report=report)
        self.close()
        return report

    def leave(self, status: str) -> dict[str, Any]:
        """Closes a process that had no step to make; the report stays as the one before left it."""
        report: dict[str, Any] = {"status": status, "final": {}, "traces": 0, "timing": {}}
        if self.report and self.report.path.exists():
            report = json.loads(self.report.path.read_text(encoding="utf-8"))
        self._plugins.observe("apt_train_end", run=self.run, report=report)
        self.close()
        return report

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()
        self.console.close()

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self._logged = step
        self._send(step, values)
        self.console.step(step, values)

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        if self._metrics:
            self._metrics.log(step, values)
        if self.report:
            self.report.log(step, values)
