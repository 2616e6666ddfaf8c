"""The schedule's panel: every piece of work once, where the costs put it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from apt_jax.trainops.distributed.pipeline.cost import Costs, table_time
from apt_jax.trainops.distributed.pipeline.table import Op, make_table

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from apt_jax.trainops.plan.schedule_picture import draw_schedule

TABLES = [make_table("1f1b", 2, 8), make_table("zero_bubble", 4, 8), make_table("interleaved", 2, 4, 2)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.schedule)
def test_each_piece_of_work_is_a_bar(table):
    axes = Figure().subplots()
    draw_schedule(axes, table)
    time = float(table_time(table, Costs()))
    assert axes.get_xlim() == (0, time)
    assert len(axes.patches) == int((table.op != Op.IDLE).sum()) == len(axes.texts)
    rows: dict[float, list[tuple[float, float]]] = {}
    for bar in axes.patches:
        rows.setdefault(round(bar.get_y(), 3), []).append((bar.get_x(), bar.get_x() + bar.get_width()))
    assert len(rows) == table.stages
    for bars in rows.values():  # a stage does one thing at a time, within the step
        bars.sort()
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(bars))
        assert bars[0][0] >= 0 and bars[-1][1] <= time + 1e-9
    assert f"{table.microbatches} microbatches" in axes.get_title()


def test_a_long_schedule_has_no_numbers():
    axes = Figure().subplots()
    draw_schedule(axes, make_table("1f1b", 4, 64))
    assert not axes.texts and "too long for the microbatches' numbers" in axes.get_xlabel()
