"""Jobs of real processes, started as a user would."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROFILE = """\
model: {architecture: apt, hidden_size: 16, num_layers: 2, num_attention_heads: 4, intermediate_size: 32, \
max_position_embeddings: 32, vocab_size: 288}
training: {batch_size: 8, max_steps: 6, warmup_steps: 1, learning_rate: 3e-3, eval_steps: 1, eval_interval: 3, \
sample_tokens: 2, distributed: {strategy: fsdp, world_size: 4}}
data: {path: data.jsonl, tokenizer: bpe, tokenizer_vocab_size: 300, packing: fit, shuffle: true, eval_fraction: 0.1}
checkpoints: {save_interval: 0}
monitoring: {console: plain, plot: false, tensorboard: false, metrics_interval: 1}
"""
# Writes the digest of every row of every batch that a process puts on its devices.
ROWS_PLUGIN = """\
import hashlib, json
import numpy as np
from apt_jax import hookimpl
apt_jax_api = "1"

@hookimpl
def apt_train_begin(run):
    import jax
    from apt_jax.trainops.distributed.feed import Feed
    plain = Feed.put
    file = open(f"rows-{jax.process_count()}-{jax.process_index()}.jsonl", "a", buffering=1)
    def put(self, batch):
        names = sorted(batch)
        rows = [hashlib.sha256(b"".join(np.ascontiguousarray(batch[n][i]).tobytes() for n in names)).hexdigest()[:16]
                for i in range(len(batch["tokens"]))]
        file.write(json.dumps(rows) + "\\n")
        return plain(self, batch)
    Feed.put = put
"""
TIMEOUT = 240  # seconds; a busy machine needs a tenth of it


def lay_out(folder: Path, changes: dict[str, str] | None = None) -> Path:
    """A profile (with texts replaced), data and the plugin in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = PROFILE
    for old, new in (changes or {}).items():
        assert old in profile
        profile = profile.replace(old, new)
    (folder / "run.yaml").write_text(profile)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    texts = [" ".join(words[(i * 7 + k) % 6] for k in range(4 + i % 19)) for i in range(300)]
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "plugins").mkdir(exist_ok=True)
    (folder / "plugins" / "rows.py").write_text(ROWS_PLUGIN)
    return folder


def command(*flags: str) -> list[str]:
    given = {flag.partition("=")[0] for flag in flags}
    defaults = ["--config=run.yaml", "--workdir=run", "--plugins_dir=plugins"]
    return [sys.executable, "-m", "apt_jax.main", *(d for d in defaults if d.partition("=")[0] not in given), *flags]


def environment(devices: int) -> dict[str, str]:
    """The tests' own, with that many devices a process and no launcher's variables."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    own = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }
    launchers = ("SLURM", "OMPI", "APT_", "MASTER_", "WORLD_SIZE", "RANK", "JOB_")
    return {k: v for k, v in os.environ.items() if not k.startswith(launchers)} | own


class Job:
    """`count` processes on loopback; `with` kills what is left of them. The last one gets `last` as well."""

    def __init__(self, folder: Path, *flags: str, count: int = 2, devices: int = 2, last: tuple[str, ...] = ()):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes: list[subprocess.Popen[bytes]] = []
        for index in range(count):
            job = {
                "APT_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "APT_NUM_PROCESSES": str(count),
                "APT_PROCESS_ID": str(index),
            }
            with open(self._log(index), "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        command(*flags, *(last if index == count - 1 else ())),
                        cwd=folder,
                        env=environment(devices) | (job if count > 1 else {}),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _log(self, index: int) -> Path:
        return self.folder / f"log-{index}.txt"

    def output(self, index: int) -> str:
        return self._log(index).read_text(errors="replace")

    def outputs(self) -> str:
        return "\n".join(f"--- process {i}\n{self.output(i)}" for i in range(len(self.processes)))

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """Exit codes of all."""
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in self.processes):
            assert time.monotonic() < deadline, self.outputs()
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def until_training(self) -> None:
        """Waits until process 0 has shown its first step, and a second more."""
        deadline = time.monotonic() + TIMEOUT
        while not re.search(r"^step \d+/", self.output(0), re.MULTILINE):
            assert all(process.poll() is None for process in self.processes), self.outputs()
            assert time.monotonic() < deadline, self.outputs()
            time.sleep(0.05)
        time.sleep(1)

    def kill(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)


def rows_of(folder: Path, count: int | str, index: int = 0) -> list[list[str]]:
    """Digests of the rows that a process of `count` read, by batch."""
    return [json.loads(line) for line in (folder / f"rows-{count}-{index}.jsonl").read_text().splitlines()]


def rows(folder: Path, count: int) -> list[list[str]]:
    """Those of all processes together, one process's after the other's."""
    batches = zip(*(rows_of(folder, count, i) for i in range(count)), strict=True)
    return [[row for part in batch for row in part] for batch in batches]


def losses(folder: Path, workdir: str = "run") -> dict[int, float]:
    """Training loss by step."""
    lines = (folder / workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def checkpoints(folder: Path, workdir: str = "run") -> list[int]:
    return sorted(int(path.name) for path in (folder / workdir / "checkpoints").iterdir() if path.name.isdigit())
