"""Counted times agree with the formulas to the last digit."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.trainops.distributed.pipeline.cost import Costs, bubble, bubble_formula, table_time, tick_times
from apt_jax.trainops.distributed.pipeline.table import make_table

SIZES = (st.integers(1, 6), st.integers(1, 24))  # stages, microbatches
PRICES = st.integers(1, 12).map(lambda n: Fraction(n, 4))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("gpipe", "1f1b")), *SIZES, st.tuples(PRICES, PRICES, PRICES))
def test_whole_backwards(schedule, P, M, prices):
    table, costs = make_table(schedule, P, M), Costs(*prices)
    assert table_time(table, costs) == (M + P - 1) * sum(prices)
    assert bubble(table, costs) == bubble_formula(schedule, P, M, costs=costs) == Fraction(P - 1, M + P - 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(2, 3), st.tuples(PRICES, PRICES, PRICES))
def test_interleaved(P, groups, v, prices):
    M, costs = P * groups, Costs(*prices)
    table = make_table("interleaved", P, M, v)
    assert table_time(table, costs) == (M * v + P - 1) * sum(prices) / v
    assert bubble(table, costs) == bubble_formula("interleaved", P, M, v, costs) == Fraction(P - 1, v * M + P - 1)


@settings(max_examples=40, deadline=None)
@given(*SIZES, st.integers(2, 3))
def test_interleaved_with_a_group_that_is_not_full(P, M, v):
    costs, whole = Costs(), -(-M // P) * P
    time = table_time(make_table("interleaved", P, M, v), costs)
    assert time <= table_time(make_table("interleaved", P, whole, v), costs)
    assert (bubble_formula("interleaved", P, M, v, costs) is None) == (whole != M)


@pytest.mark.parametrize("prices", [(1, 1, 1), (1, 2, 1), (3, 5, 2)])  # the second as the backward recomputes
@pytest.mark.parametrize("P", range(1, 9))
def test_zero_bubble(P, prices):
    F, B, W = prices
    for M in range(1, 4 * P + 3):
        table, costs = make_table("zero_bubble", P, M), Costs(*prices)
        time = table_time(table, costs)
        if M >= 2 * P - 1:
            assert time == M * (F + B + W) + (P - 1) * (F + B - W)
        else:
            assert time == M * (F + B + W) + (P - 1) * (F + B) - max(M - P, 0) * W
        assert bubble(table, costs) == bubble_formula("zero_bubble", P, M, costs=costs)
        assert M <= P or P == 1 or bubble(table, costs) < bubble(make_table("1f1b", P, M), costs)


@settings(max_examples=60, deadline=None)
@given(*SIZES, PRICES, PRICES, PRICES)
def test_zero_bubble_at_any_costs(P, M, F, B, W):
    table, costs = make_table("zero_bubble", P, M), Costs(F, B, W)
    formula = bubble_formula("zero_bubble", P, M, costs=costs)
    assert (formula is None) == (min(F, B) < W)
    if formula is not None:
        assert bubble(table, costs) == formula


def test_a_tick_takes_as_long_as_its_slowest_stage():
    costs = Costs(1, 20, 300)
    assert tick_times(make_table("1f1b", 2, 2), costs) == [1, 321, 321, 320]
    assert tick_times(make_table("zero_bubble", 2, 3), costs) == [1, 21, 21, 300 + 20 + 300, 300 + 300]
    halves = Costs(2, 40, 600)
    assert tick_times(make_table("interleaved", 2, 2, 2), halves)[:4] == [1, 1, 1, 321]


def test_costs_by_op():
    assert Costs(1, 2, 3).per_op() == (0, 1, 5, 2, 3)
    assert Costs(1, 0.5, 3).per_op(chunks=2) == (0, Fraction(1, 2), Fraction(7, 4), Fraction(1, 4), Fraction(3, 2))


def test_unknown_schedule():
    with pytest.raises(ValueError, match="unknown schedule '1fb'"):
        bubble_formula("1fb", 2, 2)


@pytest.mark.parametrize(("stages", "microbatches"), [(4, 8), (4, 16), (8, 32)])
def test_stages_that_must_all_run_alike_gain_nothing_from_zero_bubble(stages, microbatches):
    """Forwards and weight gradients of different stages then follow each other instead of going on at once."""
    plain, split = (make_table(name, stages, microbatches) for name in ("1f1b", "zero_bubble"))
    costs = Costs()
    assert table_time(plain, costs, alike=True) == table_time(plain, costs)
    assert table_time(split, costs) < table_time(plain, costs)
    assert table_time(split, costs, alike=True) >= table_time(plain, costs)
