"""Two real processes are one run: same batches, same losses, one record, and neither survives the other."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest

from tests.trainops.distributed.jobs import Job, checkpoints, lay_out, losses, rows, rows_of

CLOSE = 1e-6  # relative; sums over devices are taken in another order
ENDLESS = {"max_steps: 6": "max_steps: 1000000", "eval_interval: 3": "eval_interval: 0"}
PIPE = {"strategy: fsdp, world_size: 4": "strategy: hybrid, pipeline_parallel: 2, data_parallel: 2"}
HYBRID = {"strategy: fsdp, world_size: 4": "strategy: hybrid, data_parallel: 2, tensor_parallel: 2"}


def _runs(job):
    with job:
        assert job.wait() == [0] * len(job.processes), job.outputs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Workdirs: `straight` and its first `half` by one process; `a` by two and then one."""
    folder = lay_out(tmp_path_factory.mktemp("two"))
    _runs(Job(folder, "--workdir=straight", count=1, devices=4))
    (folder / "rows-1-0.jsonl").rename(folder / "rows-straight-0.jsonl")
    _runs(Job(folder, "--workdir=a", "--stop_at=3"))
    _runs(Job(folder, "--workdir=a", count=1, devices=4))
    _runs(Job(folder, "--workdir=half", "--stop_at=3", count=1, devices=4))
    return folder


def _close(found, wanted):
    assert found == {step: pytest.approx(wanted[step], rel=CLOSE) for step in wanted}


def test_both_read_their_rows_of_the_same_batches(folder):
    straight, two = rows_of(folder, "straight"), rows(folder, 2)
    assert len(straight[0]) == 8 and len(rows_of(folder, 2, 1)[0]) == 4
    assert two == straight[: len(two)] and len(two) == 4  # three to train on and one to evaluate


def test_the_losses_are_those_of_one_process_and_a_checkpoint_of_two_continues_in_one(folder):
    assert set(losses(folder, "straight")) == {1, 2, 3, 4, 5, 6}
    _close(losses(folder, "a"), losses(folder, "straight"))
    assert checkpoints(folder, "a") == [3, 6]


def test_only_the_first_process_shows_and_records(folder):
    kinds = [json.loads(line)["kind"] for line in (folder / "a" / "events.jsonl").read_text().splitlines()]
    assert kinds.count("begin") == 2 and kinds.count("end") == 2  # of the two commands


@pytest.mark.parametrize("mesh", [HYBRID, PIPE], ids=["data 2 x tensor 2", "pipe 2 x data 2"])
def test_a_checkpoint_of_one_continues_in_two_on_another_mesh(folder, tmp_path, mesh):
    lay_out(tmp_path, mesh)
    shutil.copytree(folder / "half", tmp_path / "run")
    job = Job(tmp_path)
    _runs(job)
    _close(losses(tmp_path), losses(folder, "straight"))
    assert "processes: 2 processes by APT_* variables, coordinator 127.0.0.1:" in job.output(0)
    assert "sample after" in job.output(0) and "step 6/6" in job.output(0)
    assert "sample after" not in job.output(1) and "step 6/6" not in job.output(1)
    first, second = (rows_of(tmp_path, 2, i) for i in (0, 1))
    whole = rows_of(folder, "straight")[-len(first) :]
    if mesh is PIPE:  # both hold the same rows
        assert first == second == whole
    else:
        assert [a + b for a, b in zip(first, second, strict=True)] == whole


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("endless"), ENDLESS)


def test_a_signal_to_one_stops_both_after_the_same_step(endless):
    with Job(endless) as job:
        job.until_training()
        job.kill(1, signal.SIGTERM)
        assert job.wait(60) == [143, 143], job.outputs()
    (step,) = checkpoints(endless)
    assert max(losses(endless)) == step
    assert json.loads((endless / "run" / "experiment_report.json").read_text())["status"] == "SIGTERM"
    assert len(set(map(len, (rows(endless, 2))))) == 1  # both read the same number of batches


@pytest.mark.parametrize("victim", [1, 0])
def test_when_one_is_killed_the_other_ends_and_names_it(endless, victim):
    with Job(endless) as job:
        job.until_training()
        job.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        codes = job.wait(20)
        seconds = time.monotonic() - killed
        assert codes[victim] == -9 and codes[1 - victim] == 4, job.outputs()
        said = job.output(1 - victim)
        pid = job.processes[victim].pid
    assert f"process {victim} of 2 (host " in said and f"pid {pid}) was lost at step" in said
    assert "start the job again: it continues from the newest checkpoint" in said
    assert "Traceback" not in said and "Check failure" not in said
    print(f"ended {seconds:.1f} s after the kill")
    if victim == 1:
        last = (endless / "run" / "events.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["kind"] == "failure" and "process 1 of 2" in last


def test_what_one_process_finds_wrong_ends_both_and_leaves_nothing(tmp_path):
    folder = lay_out(tmp_path, {"batch_size: 8": "batch_size: 6"})
    before = sorted(path.name for path in folder.iterdir())
    with Job(folder) as job:
        codes = job.wait()
        assert set(codes) <= {2, 4} and 2 in codes, job.outputs()
        assert all("batch_size" in job.output(i) and "Traceback" not in job.output(i) for i in (0, 1)), job.outputs()
    left = {path.name for path in folder.iterdir()} - set(before)
    assert left <= {"log-0.txt", "log-1.txt"}


def test_processes_that_were_started_differently_are_told_so(tmp_path):
    folder = lay_out(tmp_path)
    with Job(folder, last=("--config.training.learning_rate=1e-3",)) as job:
        assert job.wait() == [4, 2], job.outputs()
        line = "differs from process 0: training.learning_rate: 0.003 -> 0.001; start every process with the same"
        assert all(line in job.output(i) for i in (0, 1)), job.outputs()
    assert not (folder / "run").exists()
