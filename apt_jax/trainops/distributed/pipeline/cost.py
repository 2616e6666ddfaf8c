"""What a schedule takes: the time of a table, counted, and the share of it that stages wait."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from apt_jax.core.errors import unknown_name
from apt_jax.trainops.distributed.pipeline.table import SCHEDULES, TickTable

Number = int | float | Fraction


@dataclass(frozen=True)
class Costs:
    """Time one microbatch takes on all layers of one stage, in any unit; a chunk takes its share of it."""

    forward: Number = 1
    input_grad: Number = 2  # with the forward that is computed anew; its own work is as much as a forward
    weight_grad: Number = 1  # without one: it finds what input_grad has left

    def per_op(self, chunks: int = 1) -> tuple[Fraction, ...]:
        """Time of each Op, by its number, on one of `chunks` chunks."""
        forward, inputs, weights = (Fraction(x) / chunks for x in (self.forward, self.input_grad, self.weight_grad))
        return Fraction(0), forward, inputs + weights, inputs, weights


def tick_times(table: TickTable, costs: Costs, *, alike: bool = False) -> list[Fraction]:
    """Time of each tick: that of the stage with the most to do, for which the others wait.

    Args:
      table: the schedule.
      costs: of each op.
      alike: all stages run whatever any stage has in a slot, as they must where the sequence is cut (see
        `pipeline/run.py`). Only zero_bubble, which has two kinds of work in one slot, takes longer for it.
    """
    per_op = np.array(costs.per_op(table.chunks), dtype=object)  # Fractions: sums are exact
    if not alike:
        return list(per_op[table.op].sum(axis=2).max(axis=1))
    present = np.array([[per_op[np.unique(slot)].sum() for slot in tick.T] for tick in table.op], dtype=object)
    return list(present.sum(axis=1))


def table_time(table: TickTable, costs: Costs, *, alike: bool = False) -> Fraction:
    """Time of one optimizer step's forwards and backwards."""
    return sum(tick_times(table, costs, alike=alike), Fraction(0))


def bubble(table: TickTable, costs: Costs, *, alike: bool = False) -> Fraction:
    """Share of the time, from 0 to 1, in which the average stage has nothing to do; counted."""
    _, _, backward, _, _ = costs.per_op()
    work = table.microbatches * (Fraction(costs.forward) + backward)
    time = table_time(table, costs, alike=alike)
    return (time - work) / time


def bubble_formula(
    schedule: str, stages: int, microbatches: int, chunks: int = 1, costs: Costs | None = None
) -> Fraction | None:
    """The same share in closed form, or None where there is none.

    With P stages, M microbatches and v chunks it is (P - 1) / (v * M + P - 1), whatever the costs; for
    v > 1 if P divides M. For zero_bubble, with costs F, B, W of which W is the smallest, the stages wait
    (P - 1) * (F + B) - W * min(max(M - P, 0), P - 1): from M = 2 * P - 1 on that is (P - 1) * (F + B - W).

    Raises:
      ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(unknown_name("schedule", schedule, SCHEDULES))
    if schedule != "zero_bubble":
        whole = chunks == 1 or microbatches % stages == 0
        return Fraction(stages - 1, chunks * microbatches + stages - 1) if whole else None
    _, forward, backward, inputs, weights = (costs or Costs()).per_op()
    if weights > min(forward, inputs):
        return None
    hidden = weights * min(max(microbatches - stages, 0), stages - 1)
    wait = (stages - 1) * (forward + inputs) - hidden
    return wait / (wait + microbatches * (forward + backward))
