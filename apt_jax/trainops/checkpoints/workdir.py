"""The folder of a run: who wrote it, whether this config may continue it, and nothing left behind on failure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt_jax.core.config import Config, diff, to_dict
from apt_jax.core.errors import CheckpointError

CONFIG_FILE = "config.json"

# Changing these keeps a run the same run: they alter neither the weights nor the data order.
_FREE_SECTIONS = ("profile.", "monitoring.", "checkpoints.")
_FREE_KEYS = (
    "training.eval_interval",
    "training.eval_steps",
    "training.early_stopping_patience",
    "training.early_stopping_min_delta",
    "training.sample_prompts",
    "training.sample_tokens",
    "training.distributed.",
    "data.prefetch",
    "data.workers",
    "vgpu.offload",
)


def read_config(file: Path) -> dict[str, Any]:
    """What a run wrote as its config, unchecked. CheckpointError: it cannot be that."""
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is not JSON ({error}); restore it, or use another --workdir") from error
    if not isinstance(written, dict):
        raise CheckpointError(f"{file}: is not the config of a run; restore it, or use another --workdir")
    return written


class Workdir:
    """A run's folder.

    Opening checks; nothing is written before `begin`. `rollback` removes what this process created,
    so that a run which fails before its first step leaves the disk as it was. Only one process of a job
    `writes`; for the others it is a place to look.
    """

    def __init__(self, path: str | Path, *, writes: bool = True):
        """Raises CheckpointError if the folder cannot be created or written."""
        self.path = Path(path).absolute()
        self._writes = writes
        self._existing: set[str] | None = None
        self._new_parents: list[Path] = []  # folders above it that do not exist yet, innermost first
        self.begun = False
        if self.path.exists():
            if not self.path.is_dir():
                raise CheckpointError(f"workdir {self.path}: is a file; give a folder")
            self._existing = {p.name for p in self.path.iterdir()}
        if writes:
            self._check_writable()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def check_config(self, config: Config, accept_change: bool = False) -> list[str]:
        """Compares with the config that wrote this folder.

        Returns the differences that were accepted or do not matter.

        Raises:
          CheckpointError: the folder belongs to another config; the message shows the difference.
        """
        file = self.path / CONFIG_FILE
        if not file.exists():
            checkpoints = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
            foreign = ["checkpoints"] * checkpoints + sorted({"metrics.jsonl"} & (self._existing or set()))
            if foreign:
                raise CheckpointError(
                    f"workdir {self.path}: holds {', '.join(foreign)} but no {CONFIG_FILE}; use another --workdir"
                )
            return []
        changes = diff(read_config(file), to_dict(config))
        serious = [c for c in changes if not c.startswith((*_FREE_SECTIONS, *_FREE_KEYS))]
        if serious and not accept_change:
            raise CheckpointError(
                f"workdir {self.path}: was written by another config: {'; '.join(serious)}; use another "
                "--workdir, restore those values, or pass --accept_config_change to continue with the new ones"
            )
        return changes

    def begin(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Creates the folder and records the config and the environment."""
        if self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json(CONFIG_FILE, to_dict(config))
            self.write_json("env.json", environment)
        self.begun = True

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file whole or not at all."""
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False, sort_keys=True)
            file.write("\n")
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a run's records are for everyone to read
        os.replace(temporary, self.path / name)

    def rollback(self) -> None:
        """Removes what was created since opening."""
        if not self._writes or not self.path.exists():
            return
        if self._existing is None:
            shutil.rmtree(self.path)
            with contextlib.suppress(OSError):  # another run may have begun beside this one
                for parent in self._new_parents:
                    parent.rmdir()
            return
        for entry in self.path.iterdir():
            if entry.name not in self._existing:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _check_writable(self) -> None:
        folder = self.path
        while not folder.exists():
            folder = folder.parent
            self._new_parents.append(folder)
        self._new_parents = self._new_parents[:-1]  # the last one is there
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CheckpointError(
                f"workdir {self.path}: cannot be written ({error.strerror}); give another --workdir"
            ) from error
