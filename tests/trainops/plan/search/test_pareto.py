"""Fronts: nothing on one is beaten, and everything off it is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from apt_jax.trainops.plan.search.pareto import dominates, front, fronts, spread

POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40)


def same(point):
    return point


@given(POINTS)
def test_a_front_is_what_nothing_dominates(points):
    best = front(points, same)
    assert not any(dominates(a, b) for a in points for b in best)
    assert {p for p in points if not any(dominates(q, p) for q in points)} == set(best)
    assert len(set(best)) == len(best)
    assert [p[1] for p in best] == sorted(p[1] for p in best)


@given(POINTS, st.integers(0, 20))
def test_peeling_takes_each_item_once(points, enough):
    items = list(enumerate(points))
    layers = fronts(items, lambda item: item[1], enough)
    taken = [item for layer in layers for item in layer]
    assert len(set(taken)) == len(taken) and len(taken) >= min(enough, len(items))
    for before, after in pairwise(layers):
        assert all(any(dominates(a[1], b[1]) or a[1] == b[1] for a in before) for b in after)


@given(st.lists(st.integers(), min_size=1, max_size=30), st.integers(1, 40))
def test_a_spread_keeps_order_and_both_ends(items, count):
    chosen = spread(list(enumerate(items)), count)
    assert len(chosen) == min(count, len(items)) == len(set(chosen)) and chosen == sorted(chosen)
    assert chosen[0][0] == 0 and (len(chosen) == 1 or chosen[-1][0] == len(items) - 1)
