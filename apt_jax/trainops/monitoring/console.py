"""What a person sees of a run: one greppable line per report. The live view is in live.py."""

from __future__ import annotations

import datetime
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from apt_jax.trainops.monitoring.header import RunHeader


class RunConsole(Protocol):
    """Shows a run to a person."""

    def header(self, header: RunHeader) -> None:
        """Shows the facts of the run, once."""
        ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics after `step` finished steps."""
        ...

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows an evaluation; its names begin with `eval_`."""
        ...

    def checkpoint(self, step: int, path: str) -> None:
        """Shows that a checkpoint is on disk."""
        ...

    def note(self, text: str) -> None:
        """Shows anything else that happened, in one line."""
        ...

    def close(self) -> None:
        """Leaves the terminal as it was."""
        ...


class Eta:
    """Time left, from the pace of this process since its first reported step (which compiled)."""

    def __init__(self, max_steps: int, clock: Callable[[], float] = time.monotonic):
        self._max_steps, self._clock = max_steps, clock
        self._first: tuple[int, float] | None = None

    def seconds(self, step: int, metrics: Mapping[str, float]) -> float:
        """Estimated seconds until the last step, NaN while unknown; evaluations and saves count as they came."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        done = step - self._first[0]
        pace = (now - self._first[1]) / done if done > 0 else metrics.get("step_seconds", math.nan)
        return max(self._max_steps - step, 0) * pace


class PlainConsole:
    """Lines for logs and pipes: `step 120/600 loss 2.3141 lr 3.00e-04 … eta 0:08:21`."""

    def __init__(
        self, max_steps: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._max_steps = max_steps
        self._stream = stream or sys.stdout
        self._eta = Eta(max_steps, clock)

    def header(self, header: RunHeader) -> None:
        for label, text in header.rows():
            self._print(f"{label:<12} {text}")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        eta = self._eta.seconds(step, metrics)
        self._print(f"step {step}/{self._max_steps} {step_fields(metrics)} eta {duration(eta)}")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._print(f"eval {step}/{self._max_steps} {eval_fields(metrics)}")

    def checkpoint(self, step: int, path: str) -> None:
        self._print(f"checkpoint {step}/{self._max_steps} {path}")

    def note(self, text: str) -> None:
        self._print(f"note {text}")

    def close(self) -> None:
        self._stream.flush()

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class SilentConsole:
    """Shows nothing."""

    def header(self, header: RunHeader) -> None: ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def checkpoint(self, step: int, path: str) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def make_console(mode: str, max_steps: int, name: str = "", stream: TextIO | None = None) -> RunConsole:
    """Chooses the view.

    Args:
      mode: auto (live on a terminal, else plain), live, plain or off.
      max_steps: steps of the whole run.
      name: shown in the frame of the live view.
      stream: standard output by default.
    """
    target: TextIO = sys.stdout if stream is None else stream
    if mode == "off":
        return SilentConsole()
    if mode == "live" or (mode == "auto" and _can_redraw(target)):
        from apt_jax.trainops.monitoring.live import LiveConsole  # rich costs 0.1 s to import

        return LiveConsole(max_steps, name=name, stream=target)
    return PlainConsole(max_steps, target)


def step_fields(metrics: Mapping[str, float]) -> str:
    """`loss 2.3141 lr 3.00e-04 grad_norm 0.81 tokens/s 3,912 step_ms 1043`, as far as they are given."""
    return " ".join(f"{label} {text}" for label, text in _known(metrics, STEP_FIELDS))


def eval_fields(metrics: Mapping[str, float]) -> str:
    """`eval_loss 1.2345 eval_perplexity 3.44 …`, the loss first."""
    names = sorted((k for k in metrics if k.startswith("eval_")), key=lambda k: (k != "eval_loss", k))
    return " ".join(f"{name} {_compact(metrics[name])}" for name in names)


def duration(seconds: float) -> str:
    """`0:08:21`, or `3 days, 4:05:06`; `unknown` for NaN."""
    if math.isnan(seconds):
        return "unknown"
    return str(datetime.timedelta(seconds=round(seconds)))


# metric name -> label and format, in display order
STEP_FIELDS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", "{:.4f}".format),
    "learning_rate": ("lr", "{:.2e}".format),
    "grad_norm": ("grad_norm", "{:.2f}".format),
    "tokens_per_second": ("tokens/s", "{:,.0f}".format),
    "step_seconds": ("step_ms", lambda seconds: f"{seconds * 1e3:.{1 if seconds < 0.01 else 0}f}"),
}


def _known(
    metrics: Mapping[str, float], fields: Mapping[str, tuple[str, Callable[[float], str]]]
) -> list[tuple[str, str]]:
    return [(label, show(metrics[name])) for name, (label, show) in fields.items() if name in metrics]


def _compact(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _can_redraw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
