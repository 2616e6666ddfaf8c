"""The report and the picture drawn from it."""

from __future__ import annotations

import builtins
import itertools
import json
import math
import struct

import pytest

from apt_jax.trainops.monitoring import ExperimentReport, JsonlTracker, draw_report
from apt_jax.trainops.monitoring.report import SCHEMA

KEYS = {
    "schema",
    "name",
    "status",
    "updated",
    "config",
    "environment",
    "steps",
    "train_loss",
    "eval_loss",
    "learning_rates",
    "grad_norms",
    "tokens_per_second",
    "tokens",
    "timing",
    "traces",
    "dataset_stats",
    "samples",
    "final",
}


def make(workdir, start_step=0, **options):
    return ExperimentReport(
        workdir,
        name="playground",
        config={"training": {"batch_size": 4}},
        environment={"python": "3.11"},
        dataset_stats={"documents": 10},
        max_steps=100,
        start_step=start_step,
        **options,
    )


def row(step):
    return {
        "loss": 6 * math.exp(-step / 30) + 0.1 * math.sin(step),
        "learning_rate": 3e-4 * min(step / 20, 1) * (1 - step / 120),
        "grad_norm": 2 / (1 + step / 20) + 0.1 * math.cos(step),
        "tokens_per_second": 100.0,
        "total_tokens": step * 64,
    }


def fill(report, steps):
    for step in steps:
        report.log(step, row(step))
        if step % 20 == 0:
            report.log(step, {"eval_loss": row(step)["loss"] + 0.2})


def read(workdir):
    return json.loads((workdir / "experiment_report.json").read_text("utf-8"))


def test_the_report_has_exactly_its_keys_and_the_values_given(tmp_path):
    report = make(tmp_path)
    report.samples("before", [{"prompt": "2+3=", "completion": "鼠"}])
    fill(report, range(1, 101))
    report.samples("after", [{"prompt": "2+3=", "completion": "5"}])
    report.finish("finished", final={"loss": 0.4, "bad": math.nan}, traces=1, train_seconds=12.5)
    written = read(tmp_path)
    assert set(written) == KEYS
    assert written["schema"] == SCHEMA and written["status"] == "finished" and written["traces"] == 1
    assert written["train_loss"] == [[s, row(s)["loss"]] for s in range(1, 101)]
    assert [s for s, _ in written["eval_loss"]] == [20, 40, 60, 80, 100]
    assert written["steps"] == {"done": 100, "max": 100, "started_at": 0} and written["tokens"] == 6400
    assert written["timing"]["train_seconds"] == 12.5 and written["timing"]["process_seconds"] > 0
    assert written["final"] == {"loss": 0.4, "bad": None}
    assert written["samples"]["before"][0]["completion"] == "鼠"
    assert [p.name for p in tmp_path.iterdir()] == ["experiment_report.json"]


def test_the_report_is_there_while_the_run_goes_on(tmp_path):
    report = make(tmp_path, write_every=5)
    fill(report, range(1, 5))
    assert not report.path.exists()
    fill(report, [5])
    assert read(tmp_path)["status"] == "running" and read(tmp_path)["steps"]["done"] == 5


def test_writing_takes_at_most_one_percent_of_the_time(tmp_path):
    now = [0.0]

    def clock():  # every look at the clock is half a second later, so that a write costs at least that
        now[0] += 0.5
        return now[0]

    report = make(tmp_path, write_every=1, clock=clock)
    writes = []
    report_write = report.write
    report.write = lambda: (writes.append(now[0]), report_write())
    for step in range(1, 1001):
        report.log(step, row(step))
    assert len(writes) >= 3
    assert all(b - a >= 50 for a, b in itertools.pairwise(writes))


def test_a_continued_run_takes_up_curves_tokens_and_first_samples(tmp_path):
    tracker, report = JsonlTracker(tmp_path), make(tmp_path)
    tracker.start({}, 0)
    report.samples("before", [{"prompt": "a", "completion": "b"}])
    for step in range(1, 51):
        tracker.log(step, row(step))
        report.log(step, row(step))
    report.finish("SIGTERM", final={}, traces=1)
    again = make(tmp_path, start_step=40)
    fill(again, range(41, 61))
    now = again.as_dict()
    assert [s for s, _ in now["train_loss"]] == list(range(1, 61))
    assert now["samples"]["before"] == [{"prompt": "a", "completion": "b"}]
    assert now["steps"] == {"done": 60, "max": 100, "started_at": 40} and now["status"] == "running"
    assert make(tmp_path, start_step=40).as_dict()["tokens"] == 40 * 64


def test_a_new_run_takes_nothing_from_an_old_report(tmp_path):
    old = make(tmp_path)
    old.samples("before", [{"prompt": "a"}])
    old.finish("finished", final={}, traces=1)
    assert make(tmp_path).as_dict()["samples"]["before"] == []


def test_samples_are_before_or_after(tmp_path):
    with pytest.raises(ValueError, match="'before' or 'after'"):
        make(tmp_path).samples("during", [])


def test_a_report_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    report = make(tmp_path, write_every=1)
    report.path.mkdir()
    report.log(1, row(1))
    report.finish("finished", final={}, traces=1)
    assert "the run goes on" in caplog.text
    with pytest.raises(OSError):
        report.write()
    report.path.rmdir()
    report.write()
    assert read(tmp_path)["train_loss"] == [[1, row(1)["loss"]]]


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    report, notes = make(tmp_path), []
    fill(report, range(1, 5))
    assert draw_report(report.as_dict(), tmp_path / "missing", notes.append) is None
    assert notes == ["no loss.png: No such file or directory"]


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def test_the_picture_has_its_size_and_is_not_empty(tmp_path):
    report = make(tmp_path)
    fill(report, range(1, 101))
    notes = []
    path = draw_report(report.as_dict(), tmp_path, notes.append)
    assert path == tmp_path / "loss.png" and notes == []
    assert png_size(path) == (1500, 1200) and path.stat().st_size > 20_000
    assert {p.name for p in tmp_path.iterdir()} == {"experiment_report.json", "loss.png"}


@pytest.mark.parametrize("rows", [[(1, {"loss": 2.0})], [(0, {"eval_loss": 2.0})], [(1, {"loss": math.nan})]])
def test_one_point_or_none_is_no_crash(tmp_path, rows):
    report = make(tmp_path)
    for step, metrics in rows:
        report.log(step, metrics)
    notes = []
    drawn = draw_report(report.as_dict(), tmp_path, notes.append)
    has_point = not any(math.isnan(v) for _, m in rows for v in m.values())
    assert (drawn is not None) == has_point and (notes == []) == has_point


def test_without_matplotlib_there_is_one_line_and_no_file(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    report, notes = make(tmp_path), []
    fill(report, range(1, 3))
    assert draw_report(report.as_dict(), tmp_path, notes.append) is None
    (note,) = notes
    assert "apt-jax[plot]" in note and "monitoring.plot" in note and list(tmp_path.glob("loss*")) == []
