"""Under a real SLURM, `srun -n2` is all it takes."""

from __future__ import annotations

import subprocess

import pytest

from tests.trainops.distributed import slurm
from tests.trainops.distributed.jobs import Job, checkpoints, command, environment, lay_out, losses, rows, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "-")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def _srun(cluster, folder, *words):
    return subprocess.run(
        ["srun", "--ntasks=2", "--cpus-per-task=1", "--overcommit", "--kill-on-bad-exit=0", *words],
        cwd=folder,
        env=environment(2) | {"SLURM_CONF": cluster.environment["SLURM_CONF"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def test_srun_makes_two_processes_one_run(cluster, tmp_path):
    folder = lay_out(tmp_path / "job")
    done = _srun(cluster, folder, *command())
    assert done.returncode == 0, done.stdout
    assert "processes: 2 processes by SLURM job" in done.stdout
    with Job(folder, "--workdir=single", count=1, devices=4) as single:
        assert single.wait() == [0], single.outputs()
    wanted = losses(folder, "single")
    assert losses(folder) == {step: pytest.approx(wanted[step], rel=1e-6) for step in wanted}
    assert checkpoints(folder) == checkpoints(folder, "single")
    assert rows(folder, 2) == rows_of(folder, 1)


def test_a_batch_script_itself_is_one_process(cluster, tmp_path):
    """SLURM_NTASKS is 2 there as well."""
    folder = lay_out(tmp_path / "job", {"world_size: 4": "world_size: 2"})
    script = folder / "job.sh"
    script.write_text(f"#!/bin/sh\n{' '.join(command('--stop_at=1'))}\n")
    done = subprocess.run(
        ["sbatch", "--wait", "--ntasks=2", "--output=out.txt", str(script)],
        cwd=folder,
        env=environment(2) | {"SLURM_CONF": cluster.environment["SLURM_CONF"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = (folder / "out.txt").read_text()
    assert done.returncode == 0, said + done.stderr
    assert "processes:" not in said and "1 process(es)" in said
