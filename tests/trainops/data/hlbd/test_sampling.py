from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_jax.trainops.data.hlbd.exact import decimal, is_short
from apt_jax.trainops.data.hlbd.sampling import Item, Pool, apportion, draw

PARTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60)), min_size=1, max_size=8)


@given(PARTS, st.data())
def test_apportioned_parts_add_up_within_their_limits(parts, data):
    weights = {key: weight for key, (weight, _) in enumerate(parts)}
    limits = {key: limit for key, (_, limit) in enumerate(parts)}
    total = data.draw(st.integers(0, sum(limits.values())))
    shares = apportion(total, weights, limits)
    assert sum(shares.values()) == total
    assert all(0 <= shares[key] <= limits[key] for key in weights)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 1000))
def test_without_limits_shares_are_within_one_of_exact(weights, total):
    shares = apportion(total, dict(enumerate(weights)), dict.fromkeys(range(len(weights)), total))
    for key, weight in enumerate(weights):
        assert abs(shares[key] - Fraction(total * weight, sum(weights))) < 1


def test_more_than_the_limits_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        apportion(5, {"a": 1}, {"a": 4})


@given(st.integers(0, 40), st.integers(0, 16), st.integers(0, 5))
def test_drawn_sets_are_disjoint_and_teach_what_they_hold_out(samples, heldout, seed):
    pools = [
        Pool(
            "facts", 1, tuple(Item((fact, wording), str(fact)) for fact in range(12) for wording in range(3))
        ),
        Pool("sums", 3, tuple(Item((100, n)) for n in range(40))),
    ]
    samples += heldout  # at least as many as are held out: then each held-out fact can be taught
    split = draw("test", pools, samples, heldout, seed)
    assert len(set(split.train)) == len(split.train) == samples
    assert len(set(split.heldout)) == len(split.heldout) == heldout
    assert not set(split.train) & set(split.heldout)
    facts = {fact for fact, _ in split.heldout if fact < 100}
    assert facts <= {fact for fact, _ in split.train}


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=100))
def test_decimals_are_exact_or_refused(value):
    if is_short(value):
        text = decimal(value)
        assert Fraction(text) == value
        assert "." not in text or not text.endswith(("0", "."))
    else:
        with pytest.raises(ValueError, match="no exact decimal form"):
            decimal(value)


@pytest.mark.parametrize(
    ("value", "text"), [(Fraction(121, 2), "60.5"), (3, "3"), (Fraction(-1, 4), "-0.25"), (0, "0")]
)
def test_decimal_examples(value, text):
    assert decimal(value) == text
