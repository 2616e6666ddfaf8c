"""Learning-rate shapes against their closed forms, and that they run inside jit."""

from __future__ import annotations

import itertools
import math

import jax
import pytest

from apt_jax.core import schedules
from apt_jax.core.config.schema import TrainingConfig

PEAK, FLOOR, WARMUP, STEPS = 1e-3, 1e-5, 10, 110


def _config(**changes: object) -> TrainingConfig:
    return TrainingConfig(
        learning_rate=PEAK, min_learning_rate=FLOOR, warmup_steps=WARMUP, max_steps=STEPS, **changes
    )


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "wsd", "sgdr"])
def test_warmup_never_stalls_and_reaches_the_peak(shape):
    f = jax.jit(getattr(schedules, shape)(_config()))
    values = [float(f(s)) for s in range(WARMUP + 1)]
    assert values[0] > 0
    assert all(b > a for a, b in itertools.pairwise(values))
    assert values[WARMUP] == pytest.approx(PEAK)


@pytest.mark.parametrize("shape", ["linear", "cosine", "wsd"])
def test_decay_ends_at_the_floor(shape):
    f = getattr(schedules, shape)(_config())
    assert float(f(STEPS)) == pytest.approx(FLOOR, rel=1e-4)
    assert float(f(STEPS + 1000)) == pytest.approx(FLOOR, rel=1e-4)


def test_cosine_is_half_way_in_the_middle():
    f = schedules.cosine(_config())
    assert float(f(WARMUP + 50)) == pytest.approx((PEAK + FLOOR) / 2, rel=1e-4)


def test_wsd_is_flat_until_the_decay():
    f = schedules.wsd(_config(decay_steps=20))
    assert float(f(STEPS - 21)) == pytest.approx(PEAK)
    assert float(f(STEPS - 10)) == pytest.approx((PEAK + FLOOR) / 2, rel=1e-4)


def test_sgdr_restarts_with_growing_cycles():
    f = schedules.sgdr(_config(sgdr_t0=20, sgdr_t_mult=2))
    starts = [0, 20, 60]
    for start in starts:
        assert float(f(WARMUP + start)) == pytest.approx(PEAK)
    position = 30  # in the second cycle of 40 steps
    expected = FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * position / 40)) / 2
    assert float(f(WARMUP + 20 + position)) == pytest.approx(expected, rel=1e-4)


def test_no_warmup_starts_at_the_peak():
    config = TrainingConfig(learning_rate=PEAK, warmup_steps=0, max_steps=10)
    assert float(schedules.cosine(config)(0)) == pytest.approx(PEAK)
