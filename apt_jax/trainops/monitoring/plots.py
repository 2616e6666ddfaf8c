"""`loss.png`: the curves of a report as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PLOT_FILE = "loss.png"
MISSING = f"no {PLOT_FILE}: matplotlib is missing; pip install 'apt-jax[plot]' or set monitoring.plot=False"

_BLUE, _ORANGE, _GREY, _INK = "#2563eb", "#ea580c", "#64748b", "#1e293b"


def draw_report(report: Mapping[str, Any], workdir: Path, notify: Callable[[str], None]) -> Path | None:
    """Draws training and evaluation loss, learning rate and gradient norm over steps, 1500 x 1200 pixels.

    Args:
      report: `ExperimentReport.as_dict()` or the file it wrote; panels without values are left out.
      notify: is given one line if nothing is drawn.

    Returns:
      The file, or None if matplotlib is missing, there is no loss to show, or it cannot be written.
    """
    panels = _panels(report)
    if not panels:
        notify(f"no {PLOT_FILE}: the run has logged no loss yet")
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        notify(MISSING)
        return None

    # Figure and canvas without pyplot: no display, no global state, nothing to close.
    heights = [3.0] + [1.0] * (len(panels) - 1)
    figure = Figure(figsize=(10, 8), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, unit, curves) in zip(axes, panels, strict=True):
        _draw_panel(axis, title, unit, curves)
    axes[-1].set_xlabel("step", color=_INK)
    figure.suptitle(_title(report), x=0.012, ha="left", fontsize=13, fontweight="bold", color=_INK)
    path = workdir / PLOT_FILE
    temporary = path.with_suffix(".tmp")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(path)
    except OSError as error:
        notify(f"no {PLOT_FILE}: {error.strerror}")
        return None
    return path


def _panels(report: Mapping[str, Any]) -> list[tuple[str, str, list[tuple[str, str, list[Any]]]]]:
    def curve(key: str, label: str, color: str) -> tuple[str, str, list[Any]]:
        return label, color, [point for point in report.get(key, ()) if point[1] is not None]

    loss = [curve("train_loss", "training", _BLUE), curve("eval_loss", "evaluation", _ORANGE)]
    panels = [
        ("loss", "nats / token", loss),
        ("learning rate", "", [curve("learning_rates", "", _GREY)]),
        ("gradient norm", "", [curve("grad_norms", "", _GREY)]),
    ]
    if not any(points for _, _, points in loss):
        return []
    return [panel for panel in panels if any(points for _, _, points in panel[2])]


def _draw_panel(axis: Any, title: str, unit: str, curves: Sequence[tuple[str, str, list[Any]]]) -> None:
    top = max(points[-1][1] for _, _, points in curves if points)
    for label, color, points in curves:
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) == 1 or (len(points) < 40 and label == "evaluation") else None
        axis.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=4, label=label or None)
        if label:
            axis.annotate(
                f"{values[-1]:.3f}", (steps[-1], values[-1]), xytext=(6, 0), textcoords="offset points",
                va="bottom" if values[-1] == top else "top", color=color, fontsize=9, annotation_clip=False,
            )  # fmt: skip
    if any(label for label, _, points in curves if points):
        axis.legend(frameon=False, loc="upper right")
    axis.set_title(title, loc="left", fontsize=10, color=_INK)
    axis.set_ylabel(unit, color=_GREY)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axis.margins(x=0.01)
    axis.grid(True, color="#e2e8f0", linewidth=0.8)
    axis.tick_params(colors=_GREY, labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#cbd5e1")


def _title(report: Mapping[str, Any]) -> str:
    steps = report.get("steps", {})
    tokens = report.get("tokens") or 0
    text = f"{report.get('name', 'run')}: {steps.get('done', 0):,} of {steps.get('max', 0):,} steps"
    return f"{text}, {tokens:,} tokens" if tokens else text
