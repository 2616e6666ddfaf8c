"""Curves stay bounded, real, and ordered."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from apt_jax.trainops.monitoring.series import Series, sparkline


@given(st.integers(1, 500), st.integers(2, 20))
def test_points_are_real_ordered_bounded_and_include_both_ends(count, capacity):
    series = Series(capacity)
    for step in range(count):
        series.add(step, step * 0.5)
    points = series.points()
    assert len(points) <= capacity + 1
    assert points == sorted(set(points)) and all(value == step * 0.5 for step, value in points)
    assert points[0] == (0, 0.0) and points[-1] == (count - 1, series.last)


@given(st.integers(200, 500))
def test_points_are_evenly_spread(count):
    series = Series(20)
    for step in range(count):
        series.add(step, 0.0)
    steps = [step for step, _ in series.points()][:-1]
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1 and len(steps) >= 10


def test_an_empty_series_has_no_points():
    assert Series().points() == [] and Series().last is None


def test_sparkline_shape():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0] * 4, 10) == "▁▁▁▁"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([0, math.nan, 1], 8, ascii_only=True) == "_#"
    assert sparkline([math.nan], 8) == ""
