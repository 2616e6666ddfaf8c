"""The live terminal view, drawn with rich."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from apt_jax.trainops.monitoring.console import STEP_FIELDS, Eta, duration, eval_fields
from apt_jax.trainops.monitoring.header import RunHeader
from apt_jax.trainops.monitoring.series import Series, sparkline

_REFRESH_SECONDS = 0.25
_NOTES_SHOWN = 5


class LiveConsole:
    """A frame that is redrawn in place, at most four times a second, by the calling thread.

    It has no thread of its own: between reports it costs nothing, and a slow step simply leaves the
    frame as it is. What others print appears above it.
    """

    def __init__(
        self,
        max_steps: int,
        *,
        name: str = "",
        stream: TextIO | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Args:
        console: a rich console to draw on, in place of `stream`.
        """
        self._console = console or Console(file=stream)
        self._max_steps, self._name, self._clock = max_steps, name, clock
        self._eta = Eta(max_steps, clock)
        self._losses = Series(capacity=512)
        self._step, self._metrics, self._left = 0, dict[str, float](), ""
        self._evaluation = self._checkpoint = "none yet"
        self._notes: deque[str] = deque(maxlen=_NOTES_SHOWN)
        self._drawn_at = -_REFRESH_SECONDS
        self._live: Live | None = None

    def header(self, header: RunHeader) -> None:
        table = Table.grid(padding=(0, 2))
        for label, text in header.rows():
            table.add_row(Text(label, style="cyan"), Text(text))
        self._console.print(table)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step, self._metrics = step, dict(metrics)
        self._losses.add(step, metrics["loss"])
        self._left = duration(self._eta.seconds(step, metrics))
        self._draw()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._evaluation = f"step {step}: {eval_fields(metrics).replace('eval_', '')}"
        self._draw(force=True)

    def checkpoint(self, step: int, path: str) -> None:
        self._checkpoint = f"step {step}: {path}"
        self._draw(force=True)

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._draw(force=True)

    def close(self) -> None:
        if self._live is not None:
            self._draw(force=True)
            self._live.stop()
            self._live = None

    def _draw(self, force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._drawn_at < _REFRESH_SECONDS:
            return
        self._drawn_at = now
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        self._live.update(self.frame(), refresh=True)

    def frame(self) -> RenderableType:
        """The whole picture as it stands."""
        width = max(self._console.width - 6, 20)
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            ProgressBar(total=self._max_steps, completed=self._step),
            f"{self._step:,} / {self._max_steps:,}" + (f"   {self._left} left" if self._left else ""),
        )
        values = [value for _, value in self._losses.points()]
        parts: list[RenderableType] = [bar, Text("")]
        if values:
            curve = sparkline(values, width, ascii_only="utf" not in self._console.encoding.lower())
            parts += [Text(curve, style="green"), self._figures(values), Text("")]
        rows = Table.grid(padding=(0, 2))
        rows.add_row(Text("evaluation", style="cyan"), Text(self._evaluation))
        rows.add_row(Text("checkpoint", style="cyan"), Text(self._checkpoint))
        for note in self._notes:
            rows.add_row(Text("note", style="yellow"), Text(note))
        parts.append(rows)
        return Panel(Group(*parts), title=Text(f"apt_jax {self._name}".strip(), style="bold"), padding=(0, 2))

    def _figures(self, losses: list[float]) -> Table:
        known = [
            (label, show(self._metrics[k])) for k, (label, show) in STEP_FIELDS.items() if k in self._metrics
        ]
        table = Table.grid(padding=(0, 3))
        table.add_row(*(Text(label, style="cyan") for label, _ in known), Text("first loss", style="dim"))
        table.add_row(*(Text(text, style="bold") for _, text in known), Text(f"{losses[0]:.4f}", style="dim"))
        return table
