"""metrics.jsonl and events.jsonl: one row a step, valid JSON always, no trace of an interruption."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_jax.trainops.monitoring.jsonl import EventLog, JsonlTracker, plain, read_jsonl


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def strict_rows(path):
    return [json.loads(line, parse_constant=_refuse) for line in path.read_text("utf-8").splitlines()]


def record(workdir, steps, resume_at=0, **extra):
    tracker = JsonlTracker(workdir)
    tracker.start({}, resume_at)
    for step in steps:
        tracker.log(step, {"loss": 1.0 / step, **extra})
    tracker.close()
    return strict_rows(tracker.path)


def test_one_row_per_logged_step(tmp_path):
    assert record(tmp_path, [10, 20]) == [{"step": 10, "loss": 0.1}, {"step": 20, "loss": 0.05}]


def test_nothing_is_written_before_start(tmp_path):
    JsonlTracker(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_resume_drops_later_rows_and_leaves_no_duplicate(tmp_path):
    record(tmp_path, [10, 20, 30, 40])
    rows = record(tmp_path, [30, 40, 50], resume_at=25)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_interrupted_and_uninterrupted_files_are_equal(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    record(tmp_path / "a", range(1, 61))
    record(tmp_path / "b", range(1, 44))
    record(tmp_path / "b", range(31, 61), resume_at=30)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_new_run_drops_all_old_rows(tmp_path):
    record(tmp_path, [10, 20])
    assert [row["step"] for row in record(tmp_path, [5])] == [5]


@pytest.mark.parametrize("torn", [b'{"step": 20, "lo', b"\x00\xff\n", b"[1]\n", b'{"loss": 2.0}\n'])
def test_a_torn_or_foreign_line_is_dropped_on_resume(tmp_path, torn):
    record(tmp_path, [10])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [row["step"] for row in record(tmp_path, [20], resume_at=20)] == [10, 20]


def test_evaluation_joins_the_row_of_its_step(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.start({}, 0)
    tracker.log(10, {"loss": 2.0})
    tracker.log(10, {"eval_loss": 2.5})
    tracker.log(20, {"loss": 1.0})
    tracker.close()
    expected = [{"step": 10, "loss": 2.0, "eval_loss": 2.5}, {"step": 20, "loss": 1.0}]
    assert strict_rows(tracker.path) == expected


def test_values_join_a_row_written_by_an_earlier_process(tmp_path):
    record(tmp_path, [10, 20])
    tracker = JsonlTracker(tmp_path)
    tracker.start({}, 20)
    tracker.log(20, {"loss": 3, "eval_loss": 4.0})  # shorter than before: the rest of the old row must go
    tracker.close()
    assert strict_rows(tracker.path)[-1] == {"step": 20, "loss": 3, "eval_loss": 4.0}


def test_values_that_are_not_finite_are_null_and_named(tmp_path):
    rows = record(tmp_path, [1], grad_norm=math.nan, scale=-math.inf)
    odd = {"grad_norm": "nan", "scale": "-inf"}
    assert rows == [{"step": 1, "loss": 1.0, "grad_norm": None, "scale": None, "nonfinite": odd}]


def test_a_later_finite_value_clears_the_mark(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.start({}, 0)
    tracker.log(1, {"loss": math.nan})
    tracker.log(1, {"loss": np.float32(2.0)})
    assert strict_rows(tracker.path) == [{"step": 1, "loss": 2.0}]


@given(st.dictionaries(st.text(min_size=1), st.floats(), max_size=5))
def test_any_metrics_give_valid_json(tmp_path_factory, metrics):
    metrics.pop("step", None), metrics.pop("nonfinite", None)
    tracker = JsonlTracker(tmp_path_factory.mktemp("run"))
    tracker.start({}, 0)
    tracker.log(1, metrics)
    tracker.close()
    (row,) = strict_rows(tracker.path)
    assert {k: row[k] for k in metrics} == {k: v if math.isfinite(v) else None for k, v in metrics.items()}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_raises_and_leaves_the_rows_as_they_were(tmp_path, monkeypatch):
    tracker = JsonlTracker(tmp_path)
    tracker.start({}, 0)
    tracker.log(1, {"loss": 1.0})
    before = tracker.path.read_bytes()

    class Full:
        """The real file, in which only the first 5 bytes beyond the old end find room."""

        def __init__(self, file):
            self._file, self.failed = file, False

        def write(self, data):
            if self.failed:
                return self._file.write(data)
            if len(data) > 5 and self._file.tell() >= 0 and not hasattr(self, "_part"):
                self._part = True
                return self._file.write(data[:5])
            self.failed = True
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self._file, name)

    real = tracker._file
    for step in (1, 2):  # extending a row, appending a row
        monkeypatch.setattr(tracker, "_file", Full(real))
        with pytest.raises(OSError, match="No space"):
            tracker.log(step, {"eval_loss": 9.0})
        assert tracker.path.read_bytes() == before
    monkeypatch.setattr(tracker, "_file", real)
    tracker.log(2, {"loss": 0.5})
    assert [row["step"] for row in strict_rows(tracker.path)] == [1, 2]


def test_events_append_over_processes_and_survive_a_torn_line(tmp_path):
    EventLog(tmp_path).write("started", step=0, devices=["cpu"])
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "2026')
    EventLog(tmp_path).write("checkpoint", step=10, loss=math.nan)
    first, second = read_jsonl(tmp_path / "events.jsonl")
    assert (first["kind"], first["devices"]) == ("started", ["cpu"])
    assert (second["kind"], second["step"], second["loss"]) == ("checkpoint", 10, None)
    assert first["time"] <= second["time"] and first["time"].endswith("+00:00")


def test_texts_are_events(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.start({}, 0)
    tracker.text(3, "sample", "你好\n世界")
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"], event["name"], event["value"]) == (
        "text",
        3,
        "sample",
        "你好\n世界",
    )


def test_reading_a_file_that_is_not_there_gives_nothing(tmp_path):
    assert list(read_jsonl(tmp_path / "metrics.jsonl")) == []


def test_plain_copies_numpy_tuples_and_paths(tmp_path):
    value = {"a": (np.int32(3), np.float64("inf")), 1: tmp_path, "b": None}
    assert plain(value) == {"a": [3, None], "1": str(tmp_path), "b": None}


def test_an_event_that_cannot_be_written_is_logged_once_and_does_not_stop_the_run(tmp_path, caplog):
    log = EventLog(tmp_path)
    log.path.mkdir()
    log.write("a"), log.write("b")
    assert len(caplog.records) == 1 and "events are lost" in caplog.text
    log.path.rmdir()
    log.write("c")
    assert [event["kind"] for event in read_jsonl(log.path)] == ["c"]
