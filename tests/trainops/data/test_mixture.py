"""Shares are kept at every moment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.trainops.data.mixture import Mixture


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0.01, 10))
def test_every_prefix_is_within_one_row_of_its_shares(weights, scale):
    mixture = Mixture([w * scale for w in weights])
    source, number = mixture.locate(np.arange(500))
    shares = np.array(weights) / sum(weights)
    counts = np.cumsum(source[:, None] == np.arange(len(weights)), axis=0)
    assert np.abs(counts - shares * np.arange(1, 501)[:, None]).max() < 1 + 500 / 10_000
    for s in range(len(weights)):
        assert np.array_equal(number[source == s], np.arange(counts[-1, s]))  # none left out, none twice


def test_numbers_go_on_over_cycles():
    mixture = Mixture([1, 2])
    source, number = mixture.locate(np.array([0, 1, 2, 3, 4, 5, 3_000_000]))
    assert source.tolist() == [1, 0, 1, 1, 0, 1, 1]
    assert number.tolist() == [0, 0, 1, 2, 1, 3, 2_000_000]


def test_odd_weights_are_kept_to_a_ten_thousandth():
    source, _ = Mixture([0.123456, 0.7, 0.176544]).locate(np.arange(100_000))
    assert np.bincount(source) / 100_000 == pytest.approx([0.123456, 0.7, 0.176544], abs=1e-4)


def test_a_tiny_weight_still_gets_rows():
    source, _ = Mixture([1e-9, 1.0]).locate(np.arange(20_002))
    assert (source == 0).sum() == 2
