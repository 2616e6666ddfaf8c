"""Plans from a process of any kind: here where jax is on the CPU only, else in a process of their own."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt_jax.core.config import Config, to_dict
from apt_jax.trainops.plan import Plan, PlanError, make_plan
from apt_jax.vgpu.scheduler import Target

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

_WORKER = "apt_jax.trainops.extreme.worker"
_FORCED = "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class Request:
    """What the other process needs; plugins are loaded there anew.

    Attributes:
      config: as `to_dict` gives it.
      target: to compile for, its device with the machine's links.
      plugins: records of those that are active here.
    """

    config: dict[str, Any]
    target: Target
    plugins: list[dict[str, Any]]


def compile_plan(config: Config, plugins: Plugins, target: Target) -> Plan:
    """As `make_plan`, whatever devices jax holds in this process, none of which is touched.

    Compiling for devices that are not there needs a jax that is on the CPU alone. Where this one is not bound to be,
    another process compiles; so it does for a CPU target, which settles how many devices a process has.

    Raises:
      AptError: as `make_plan`, from either process.
      PlanError: the other process ended without an answer.
    """
    make = make_plan if can_compile_here(target) else compile_elsewhere
    return make(config, plugins, target)


def can_compile_here(target: Target) -> bool:
    """Whether jax in this process is bound to the CPU, and the target does not ask for devices of it."""
    import jax

    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    return platforms == "cpu" and target.device.vendor != "cpu"


def compile_elsewhere(config: Config, plugins: Plugins, target: Target) -> Plan:
    """The same in a new process; raises as `compile_plan`."""
    request = Request(to_dict(config), target, plugins.as_records())
    with tempfile.TemporaryDirectory(prefix="apt_jax_extreme_") as folder:
        answer = Path(folder) / "answer"
        done = subprocess.run(
            [sys.executable, "-m", _WORKER, str(answer)],
            input=pickle.dumps(request),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
        )
        if not answer.is_file():
            raise PlanError(f"--target={target}: {_end_of(done)}")
        # Written by a child of ours, in a folder that only this user can write.
        found = pickle.loads(answer.read_bytes())
    if isinstance(found, Exception):
        raise found
    return found


def _environment() -> dict[str, str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    flags = environment.get("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if not flag.startswith(_FORCED))
    # What can be imported here, a plugin beside a script say, can be imported there.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return environment


def _end_of(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode == -signal.SIGKILL:
        return "the compiling process was killed, as happens where memory runs out; free some, or plan fewer devices"
    lines = done.stderr.decode(errors="replace").split("\n")
    last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "it said nothing")
    return f"the compiling process ended with {done.returncode}: {last[:240]}"
