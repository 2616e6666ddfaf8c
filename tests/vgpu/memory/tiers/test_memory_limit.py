"""Training with 6.8 times as much state as the process may have memory."""

from __future__ import annotations

import sys

import pytest

from benchmarks.tiers import MIB, Task, launch


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on private memory is Linux's")
def test_a_process_trains_what_exceeds_its_memory_limit(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # programs as users have them
    task, limit = Task(layers=93, width=640, steps=2), 768 * MIB
    assert task.state_bytes > 6.8 * limit
    ours, theirs = launch("streamed", task, limit), launch("in_memory", task, 0)
    for a, b in zip(ours["rows"], theirs["rows"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["l0_peak"] < 2.1 * task.layer_bytes
    assert ours["rows"][1]["loss"] < ours["rows"][0]["loss"]
    assert ours["peak_resident"] < limit < theirs["peak_resident"] / 6.8
