"""A plan as a picture: memory by cause against the device's, the least time of a step, and the pipeline's schedule."""

from __future__ import annotations

from pathlib import Path

from apt_jax.core.errors import AptError
from apt_jax.trainops.plan.memory import CAUSES
from apt_jax.trainops.plan.plan import Plan
from apt_jax.trainops.plan.schedule_picture import draw_schedule
from apt_jax.trainops.plan.text import size_text

_COLOURS = (
    "#4477aa",
    "#66ccee",
    "#bbbbbb",
    "#228833",
    "#88ccaa",
    "#ccbb44",
    "#ee6677",
    "#aa3377",
    "#dddddd",
    "#555555",
)
_GIB = 2**30


def draw_plan(plan: Plan, path: Path) -> None:
    """Writes the picture; the file's ending decides its format.

    Raises:
      AptError: matplotlib is not installed, or the file cannot be written so.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AptError("--plot: needs matplotlib; pip install '.[plot]'") from error
    table = plan.table
    figure = Figure(figsize=(10, 4.5 if table is None else 6.4 + 0.3 * table.stages), layout="constrained")
    heights = (4.5,) if table is None else (4.5, 1.9 + 0.3 * table.stages)
    axes = figure.subplot_mosaic("mt" if table is None else "mt;ss", width_ratios=(3, 2), height_ratios=heights)
    memory, times = axes["m"], axes["t"]
    left = 0.0
    for (cause, _), colour in zip(CAUSES.items(), _COLOURS, strict=True):
        if cause in plan.parts:
            width = plan.parts[cause].bytes / _GIB
            label = f"{cause.replace('_', ' ')} {size_text(plan.parts[cause].bytes)}"
            memory.barh([plan.target], [width], left=[left], color=colour, label=label)
            left += width
    memory.axvline(plan.capacity / _GIB, color="black", linestyle="--", linewidth=1)
    memory.set_xlabel(f"GiB of one device; dashed: what a program can have, {plan.capacity / _GIB:.1f}")
    memory.set_title(f"{plan.profile}: {plan.verdict}", fontsize=10)
    memory.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    bounds = {"compute": plan.bounds.compute, "memory": plan.bounds.memory, **plan.bounds.by_link}
    times.bar([*bounds], [seconds * 1e3 for seconds in bounds.values()], color="#4477aa")
    times.set_ylabel("ms of a step, at least")
    times.set_title(f"MFU at most {plan.bounds.mfu:.0%}", fontsize=10)
    if table is not None:
        draw_schedule(axes["s"], table, alike=plan.alike)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise AptError(f"--plot={path}: cannot be written: {error}") from error
