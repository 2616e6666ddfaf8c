"""A pipeline's schedule as a panel of a picture: stages against time, each piece of work with its microbatch."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from apt_jax.trainops.distributed.pipeline.cost import Costs, bubble, tick_times
from apt_jax.trainops.distributed.pipeline.table import Op, TickTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Op -> name in the legend, colour: as dark as black numbers on it allow, and apart for every kind of eye.
_LOOKS = {
    Op.FORWARD: ("forward", "#88ccaa"),
    Op.BACKWARD: ("backward, with the forward again", "#7fb2e5"),
    Op.INPUT_GRAD: ("input gradients, with the forward again", "#7fb2e5"),
    Op.WEIGHT_GRAD: ("weight gradients", "#eecc66"),
}
_NUMBERED = 70  # forwards long: of a longer schedule the numbers would not be legible
_CHUNKS = "abcdefghijklmnopqrstuvwxyz"


def draw_schedule(axes: Axes, table: TickTable, *, alike: bool = False) -> None:
    """Draws all ticks, each as long as its busiest stage works; what is white waits.

    Args:
      axes: of matplotlib, filled.
      table: the schedule.
      alike: as for `tick_times`.
    """
    costs = Costs()
    per_op = [float(cost) for cost in costs.per_op(table.chunks)]
    ends = list(accumulate(float(time) for time in tick_times(table, costs, alike=alike)))
    starts = [0.0, *ends[:-1]]
    numbered = ends[-1] <= _NUMBERED
    for op, (name, colour) in _LOOKS.items():
        bars = _bars(table, op, starts, per_op)
        if not bars:
            continue
        left, stage, labels = zip(*bars, strict=True)
        drawn = axes.barh(stage, per_op[op], left=left, height=0.8, color=colour, edgecolor="white", label=name)
        if numbered:
            axes.bar_label(drawn, labels, label_type="center", fontsize=7 if table.chunks * ends[-1] <= 40 else 5)
    axes.set_yticks(range(table.stages), [f"stage {s}" for s in range(table.stages)])
    axes.invert_yaxis()
    axes.set_xlim(0, ends[-1])
    unit = "time; 1 is a stage's forward of a microbatch"
    numbers = "" if numbered else "; too long for the microbatches' numbers"
    axes.set_xlabel(f"{unit}{numbers}", fontsize=8)
    idle = float(bubble(table, costs, alike=alike))
    name = f"{table.schedule}, {table.microbatches} microbatches"
    axes.set_title(f"{name}: stages wait {idle:.0%} of the time", fontsize=10)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3)


def _bars(table: TickTable, op: Op, starts: list[float], per_op: list[float]) -> list[tuple[float, int, str]]:
    """(start, stage, label) of every piece of work of a kind: within a tick a stage does its slots in order."""
    found = []
    for tick, start in enumerate(starts):
        for stage in range(table.stages):
            at = start
            for slot in range(table.slots):
                kind = Op(table.op[tick, stage, slot])
                if kind == op:
                    chunk = _CHUNKS[table.chunk[tick, stage, slot] % 26] if table.chunks > 1 else ""
                    found.append((at, stage, f"{table.micro[tick, stage, slot]}{chunk}"))
                at += per_op[kind]
    return found
