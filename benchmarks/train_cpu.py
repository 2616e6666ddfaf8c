"""Training on a CPU: our compiled step beside transformers' Llama in eager torch.

    python -m benchmarks.train_cpu [--rounds 15] [--steps 1] [--precision fp32 bf16] [--scan]

A Llama of width 256 with 6 layers, 8192 tokens of vocabulary, 16 rows of 256 tokens a step, AdamW. Prints
tokens per second, peak memory, their ratios, and how much of a whole run Python takes. How it measures is
in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.contenders import Task, command

OURS, THEIRS = "apt_jax", "transformers"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")


@dataclass
class Contender:
    """A process, and what it reported per round."""

    name: str
    task: Task
    process: subprocess.Popen[str]
    first_losses: list[float]
    rounds: list[dict[str, float]] = field(default_factory=list)

    def run(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.rounds.append(read_answer(self.process))

    def series(self, key: str) -> list[float]:
        return [r[key] for r in self.rounds]


def read_answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next JSON line of a contender; other lines are its chatter."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a contender ended with exit code {process.wait()}; its error is above")


def start(name: str, task: Task) -> Contender:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(
        command(name, task), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    return Contender(name, task, process, read_answer(process)["losses"])


def race(tasks: list[Task], rounds: int, steps: int) -> dict[tuple[str, str], Contender]:
    """All contenders, stopped again, by (precision, name)."""
    contenders = [start(name, task) for task in tasks for name in (OURS, THEIRS)]
    try:
        for _ in range(rounds):
            for contender in contenders:
                contender.run(steps)
    finally:
        for contender in contenders:
            contender.process.terminate()
    return {(c.task.precision, c.name): c for c in contenders}


def describe(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def table(contenders: dict[tuple[str, str], Contender], steps: int) -> list[str]:
    lines = [
        "| precision | side | tokens/s | ms/step | CPU s/step | peak memory | loss, step 1 | last |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (precision, name), c in contenders.items():
        seconds = statistics.median(c.series("seconds")) / steps
        cpu = statistics.median(c.series("cpu_seconds")) / steps
        tokens = c.task.batch_size * c.task.length
        lines.append(
            f"| {precision} | {name} | {tokens / seconds:,.0f} | {seconds * 1e3:,.0f} | {cpu:.2f} "
            f"| {c.rounds[-1]['peak_memory'] / 1e6:,.0f} MB | {c.first_losses[0]:.4f} | {c.rounds[-1]['loss']:.4f} |"
        )
    return lines


def ratios(contenders: dict[tuple[str, str], Contender]) -> list[str]:
    lines = [
        f"| precision | speed: {OURS} / {THEIRS} | CPU time: {OURS} / {THEIRS} | peak memory: {OURS} / {THEIRS} |",
        "|---|---|---|---|",
    ]
    for precision in dict.fromkeys(p for p, _ in contenders):
        ours, theirs = contenders[precision, OURS], contenders[precision, THEIRS]
        speed = [b / a for a, b in zip(ours.series("seconds"), theirs.series("seconds"), strict=True)]
        cpu = [a / b for a, b in zip(ours.series("cpu_seconds"), theirs.series("cpu_seconds"), strict=True)]
        memory = ours.rounds[-1]["peak_memory"] / theirs.rounds[-1]["peak_memory"]
        lines.append(f"| {precision} | {describe(speed)} | {describe(cpu)} | {memory:.2f} |")
    return lines


def whole_run(task: Task) -> list[str]:
    """Python's share of a run of the public trainer."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    output = subprocess.run(command("run", task), stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
    run = json.loads(output.splitlines()[-1])
    share = run["host_seconds"] / run["step_seconds"]
    return [
        f"A whole run of {run['steps']} steps ({task.precision}; data, metrics, work directory): Python took "
        f"{share:.2%} of the time between steps, and the step was traced {run['traces']} time(s).",
    ]


def hardware() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {cores()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds through all contenders; at least 2")
    parser.add_argument("--steps", type=int, default=1, help="steps of each contender per round")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--scan", action="store_true", help="our side: one compiled body for all layers")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")

    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            Task(precision, str(Path(folder) / "weights"), cores(), scan=arguments.scan)
            for precision in arguments.precision
        ]
        subprocess.run(command("weights", tasks[0]), check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        contenders = race(tasks, arguments.rounds, arguments.steps)
        host = whole_run(tasks[0])
    print(f"`python -m benchmarks.train_cpu {' '.join(sys.argv[1:])}`".replace(" `", "`"))
    print(f"on {hardware()}; " + ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    for block in (table(contenders, arguments.steps), ratios(contenders), host):
        print("", *block, sep="\n")


if __name__ == "__main__":
    main()
