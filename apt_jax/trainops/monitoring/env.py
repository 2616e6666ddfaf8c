"""What a run's figures depend on besides its config: software, devices, compiler flags, source revision."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "apt-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tokenizers",
    "safetensors",
    "ml-collections",
    "pluggy",
)
# Settings that change results or speed. Only these are recorded: others may hold names, paths or secrets.
_VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_THREEFRY_PARTITIONABLE",
    "OMP_NUM_THREADS",
    "ENABLE_VIRTUAL_BLACKWELL",
    "VB_MODE",
)
_PATH = re.compile(r"(?:[A-Za-z]:)?[~/\\][^\s,;]*")


def environment() -> dict[str, Any]:
    """The environment as plain JSON values; names no host, user or path. Starts jax's backend."""
    import jax

    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": versions(PACKAGES),
        "backend": jax.default_backend(),
        "devices": dict(kinds),
        "processes": jax.process_count(),
        "variables": {k: _PATH.sub("<path>", os.environ[k]) for k in _VARIABLES if k in os.environ},
        "revision": source_revision(),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions; a package that is not installed is left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_revision(root: Path | None = None) -> dict[str, Any] | None:
    """Commit of the checkout this package is run from, and whether its tracked files were changed.

    None for an installed wheel: a repository that merely contains the environment says nothing.
    """
    root = root or Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "changed": bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # git is missing or refuses: the revision is unknown
        return None
    return done.stdout.strip()
