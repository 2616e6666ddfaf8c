"""Asked to stop by a signal, a run saves, says so in its exit code, and is continued by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.mistakes import PROFILE, lay_out

ROOT = Path(__file__).parents[3]


def _run_until_signal(folder: Path, number: signal.Signals, after: int) -> tuple[int, str]:
    """Starts the run, sends the signal once more than `after` steps are recorded; (exit code, output)."""
    command = [sys.executable, "-m", "apt_jax.main", "--config=run.yaml", "--workdir=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    metrics = folder / "run" / "metrics.jsonl"
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > after):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_terminated_then_continued_then_interrupted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    endless = PROFILE.replace("max_steps: 4", "max_steps: 1000000, eval_interval: 0")
    lay_out({"run.yaml": endless + "checkpoints: {save_interval: 0}\n"})

    code, output = _run_until_signal(tmp_path, signal.SIGTERM, after=2)
    assert code == 143, output
    (first,) = (int(path.name) for path in Path("run/checkpoints").iterdir())
    rows = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert first >= rows[-1] > 0
    assert "Traceback" not in output and "absl" not in output and "tracked_metric" not in output

    code, output = _run_until_signal(tmp_path, signal.SIGINT, after=len(rows) + 2)
    assert code == 130, output
    assert f"continues at step {first}" in output
    steps = sorted(int(path.name) for path in Path("run/checkpoints").iterdir())
    assert steps[0] == first and steps[1] > first
    assert json.loads(Path("run/experiment_report.json").read_text())["status"] == "SIGINT"
