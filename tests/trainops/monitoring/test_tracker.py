"""The fan-out: a tracker's failure is reported, counted, and does not reach the run."""

from __future__ import annotations

import time

import pytest

from apt_jax.trainops.monitoring import JsonlTracker, MetricsLogger, TensorBoardTracker, build_trackers
from apt_jax.trainops.monitoring.tracker import Tracker


class Recorder:
    def __init__(self, failures: int = 0, fail_start: bool = False):
        self.rows, self.calls, self.closed = [], 0, False
        self._failures, self._fail_start = failures, fail_start

    def start(self, config, step):
        if self._fail_start:
            raise ConnectionError("no such server")

    def log(self, step, metrics):
        self.calls += 1
        if self.calls <= self._failures:
            raise ConnectionError(f"timed out\nafter {self.calls}")
        self.rows.append((step, dict(metrics)))

    def text(self, step, name, value):
        self.rows.append((step, {name: value}))

    def close(self):
        self.closed = True


def make(**trackers):
    lines: list[str] = []
    logger = MetricsLogger(trackers, warn=lines.append)
    logger.start({}, 0)
    return logger, lines


def test_every_tracker_gets_every_row():
    a, b = Recorder(), Recorder()
    logger, lines = make(a=a, b=b)
    logger.log(1, {"loss": 2.0})
    logger.text(1, "sample", "x")
    logger.close()
    assert a.rows == b.rows == [(1, {"loss": 2.0}), (1, {"sample": "x"})]
    assert a.closed and b.closed and lines == []


def test_a_failing_tracker_is_dropped_after_three_with_two_lines_in_all():
    good, bad = Recorder(), Recorder(failures=99)
    logger, lines = make(bad=bad, good=good)
    for step in range(1, 6):
        logger.log(step, {"loss": 1.0})
    assert [step for step, _ in good.rows] == [1, 2, 3, 4, 5]
    assert bad.calls == 3 and logger.failures == {"bad": 3, "good": 0} and logger.active == ("good",)
    assert lines == [
        "tracker 'bad' failed (ConnectionError: timed out after 1); the run goes on",
        "tracker 'bad' failed (ConnectionError: timed out after 3); dropped",
    ]


def test_the_local_record_is_never_dropped_and_goes_on():
    local = Recorder(failures=5)
    logger, lines = make(jsonl=local)
    for step in range(1, 8):
        logger.log(step, {"loss": 1.0})
    assert [step for step, _ in local.rows] == [6, 7] and logger.failures == {"jsonl": 5}
    assert len(lines) == 1


def test_a_tracker_that_does_not_start_is_dropped_at_once():
    logger, lines = make(remote=Recorder(fail_start=True), good=Recorder())
    assert logger.active == ("good",)
    assert lines == ["tracker 'remote' failed (ConnectionError: no such server); dropped"]


def test_an_interrupt_is_not_a_failure():
    class Interrupted(Recorder):
        def log(self, step, metrics):
            raise KeyboardInterrupt

    logger, _ = make(a=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        logger.log(1, {})


def test_build_makes_each_named_tracker_once_in_order(tmp_path):
    registry = {"jsonl": JsonlTracker, "tensorboard": TensorBoardTracker}
    trackers = build_trackers(("jsonl", "tensorboard", "jsonl"), registry.__getitem__, tmp_path, None)
    assert list(trackers) == ["jsonl", "tensorboard"]
    assert all(isinstance(tracker, Tracker) for tracker in trackers.values())


def test_logging_costs_under_one_percent_of_a_100_ms_step(tmp_path):
    logger, lines = make(jsonl=JsonlTracker(tmp_path), tensorboard=TensorBoardTracker(tmp_path))
    metrics = {f"metric_{i}": i / 7 for i in range(10)}
    times = []
    for step in range(1, 301):
        began = time.perf_counter()
        logger.log(step, metrics)
        times.append(time.perf_counter() - began)
    assert lines == []
    assert sorted(times)[len(times) // 2] < 1e-3  # median: this machine may be busy with other things
