"""A SLURM of one node, all of it in a temporary folder and on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sinfo")
SECONDS = 60  # for it to come up
_CONF = """\
ClusterName=apt
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why it cannot run here; empty if it can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)} on PATH (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "starts SLURM's daemons, which needs root"
    return "" if (os.cpu_count() or 1) >= 2 else "needs two processor cores"


class Slurm:
    """Its daemons run within the `with` block.

    Attributes:
      environment: lets SLURM's commands find it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        control, node = _free_ports(2)
        conf = _CONF.format(host=host, folder=self.folder, control=control, node=node)
        (self.folder / "slurm.conf").write_text(conf)
        try:
            files = {"socket": "munge.socket", "log-file": "munged.log", "pid-file": "munged.pid", "seed-file": "seed"}
            options = [f"--{option}={self.folder / name}" for option, name in files.items()]
            # --force: the folder is a temporary one of everybody's
            self._start("munged", "--foreground", "--force", f"--key-file={key}", *options)
            self._wait(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D", "-N", host)
            self._wait(lambda: "idle" in self._state())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, *words: str) -> None:
        with open(self.folder / f"{words[0]}.out", "wb") as out:
            self._daemons.append(
                subprocess.Popen(words, env=self.environment, stdout=out, stderr=out, cwd=self.folder)
            )

    def _state(self) -> str:
        command = ["sinfo", "--noheader", "--format=%T"]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def _wait(self, ready) -> None:
        deadline = time.monotonic() + SECONDS
        while not ready():
            logs = "\n".join(log.read_text(errors="replace")[-1500:] for log in self.folder.glob("*.out"))
            assert all(daemon.poll() is None for daemon in self._daemons), logs
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
