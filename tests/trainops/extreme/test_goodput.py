"""Young's and Daly's formulas, against simulation and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.core.errors import ConfigError
from apt_jax.trainops.extreme.goodput import daly_interval, shares, young_interval
from apt_jax.trainops.extreme.reliability import MTBF_HOURS, Faults, reliability, writers_of

# (work between checkpoints, checkpoint, MTBF, restart), seconds: mild, as at 100,000 devices, and hopeless.
CASES = [(3600.0, 60.0, 86_400.0, 600.0), (300.0, 33.0, 1800.0, 600.0), (900.0, 120.0, 600.0, 300.0)]


def simulate(interval, checkpoint, mtbf, restart, segments, seed):
    """Seconds of each of many segments by cause, [segments, 4]: failures drawn one by one, nothing integrated."""
    rng = np.random.default_rng(seed)
    spent = np.zeros((segments, 4))
    for row in spent:
        while (until := rng.exponential(mtbf)) < interval + checkpoint:
            row[2] += until
            while (again := rng.exponential(mtbf)) < restart:
                row[3] += again
            row[3] += restart
        row[:2] = interval, checkpoint
    return spent


@pytest.mark.parametrize("case", CASES)
def test_shares_are_those_of_a_simulated_job(case):
    spent = simulate(*case, segments=20_000, seed=0)
    expected = shares(*case)
    whole = spent.sum(axis=1)
    # Each cause's mean per segment, held to four standard errors; a share is such a mean over the whole's.
    seconds = case[0] / expected.useful
    assert abs(whole.mean() - seconds) <= 4 * whole.std() / math.sqrt(len(spent))
    for column, share in ((2, expected.rework), (3, expected.restarts)):
        mean, error = spent[:, column].mean(), spent[:, column].std() / math.sqrt(len(spent))
        assert abs(mean - share * seconds) <= 4 * error
        assert error < 0.05 * mean  # the simulation says something


@pytest.mark.parametrize("checkpoint", [1.0, 33.0, 300.0])
@pytest.mark.parametrize("mtbf", [1800.0, 10_800.0, 1e6])
def test_daly_is_the_best_interval_by_brute_force(checkpoint, mtbf):
    tried = np.geomspace(1e-3 * mtbf, 3 * mtbf, 20_000)
    useful = np.array([shares(each, checkpoint, mtbf, 600.0).useful for each in tried])
    best = tried[useful.argmax()]
    daly, young = daly_interval(checkpoint, mtbf), young_interval(checkpoint, mtbf)
    assert daly == pytest.approx(best, rel=0.01 + 1e-3)  # the grid is 0.04 % wide
    assert abs(daly - best) <= abs(young - best) + 1e-3 * best
    assert shares(daly, checkpoint, mtbf, 600.0).useful >= useful.max() * (1 - 1e-5)


def test_formulas_by_hand():
    assert young_interval(50.0, 10_000.0) == 1000.0
    # √(2·50·10⁴)·(1 + ⅓·√(1/400) + ⅑·(1/400)) - 50
    assert daly_interval(50.0, 10_000.0) == pytest.approx(1000 * (1 + 1 / 60 + 1 / 3600) - 50)
    assert daly_interval(500.0, 200.0) == 200.0
    # M e^(R/M) (e^((τ+δ)/M) - 1) for M = 1000, R = 100, τ = 400, δ = 50
    wall = 1000 * math.exp(0.1) * (math.exp(0.45) - 1)
    assert shares(400.0, 50.0, 1000.0, 100.0).useful == pytest.approx(400 / wall)


@settings(deadline=None, max_examples=200)
@given(*(st.floats(1e-3, 1e7) for _ in range(4)))
def test_shares_add_up(interval, checkpoint, mtbf, restart):
    found = shares(interval, checkpoint, mtbf, restart)
    each = [found.useful, found.checkpoints, found.rework, found.restarts]
    assert sum(each) == pytest.approx(1.0)
    assert min(each) >= -1e-9


def test_without_failures_only_checkpoints_cost():
    found = shares(900.0, 100.0, 1e12, 600.0)
    assert found.useful == pytest.approx(0.9, rel=1e-6) and found.checkpoints == pytest.approx(0.1, rel=1e-6)


def test_the_default_rate_is_that_of_the_source():
    assert pytest.approx(16_384 * 54 * 24 / 419, rel=0.02) == MTBF_HOURS
    found = reliability(16_384, 1e12, 256, Faults())
    assert found.expected.failures_per_day * 54 == pytest.approx(419, rel=0.02)


def test_a_checkpoint_takes_the_slower_of_device_and_storage():
    faults = Faults(device_bandwidth=1e9, storage_bandwidth=1e12)
    assert reliability(1000, 1e12, 10, faults).checkpoint_seconds == 100.0
    assert reliability(1000, 1e12, 1000, faults).checkpoint_seconds == 1.0
    assert reliability(1000, 4e12, 10**6, faults).checkpoint_seconds == 4.0
    assert reliability(1000, 4e12, 10**6, Faults(checkpoint_seconds=7.0)).checkpoint_seconds == 7.0


def test_of_a_job():
    found = reliability(100_000, 2.1e12, 128, Faults(mtbf_hours=50_000.0), step_seconds=2.0)
    assert found.expected.mtbf == 1800.0 and found.expected.failures_per_day == 48.0
    assert found.save_interval == round(found.expected.interval / 2.0)
    goodputs = [row.shares.useful for row in found.table]
    assert goodputs == sorted(goodputs) and found.expected in found.table and len(found.table) == 5
    report = found.to_json()
    assert report["goodput"] == found.goodput and report["table"][2]["failures_per_day"] == 48.0
    assert reliability(8, 1e9, 1, Faults()).save_interval is None


def test_one_copy_of_the_state_is_written():
    mesh = {"pipe": 2, "data": 100, "fsdp": 4, "expert": 1, "context": 3, "tensor": 8}
    assert writers_of(mesh) == 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mtbf_hours": 0.0}, "mtbf_hours: 0 must be above 0, and finite"),
        ({"restart_seconds": -1.0}, "restart_seconds: -1 must be 0 or more, and finite"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds: nan must be above 0, and finite"),
        ({"storage_bandwidth": float("inf")}, "storage_bandwidth: inf must be above 0, and finite"),
    ],
)
def test_impossible_figures(given, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Faults(**given)
