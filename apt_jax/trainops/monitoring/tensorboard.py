"""TensorBoard events under `<workdir>/tensorboard`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt_jax.trainops.monitoring.event_file import EventFile

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes scalars as `train/<name>` and `eval/<name>`, and texts; a name with a slash stays as it is."""

    def __init__(self, workdir: Path, config: Any = None):
        self._folder = workdir / FOLDER
        self._file: EventFile | None = None

    def start(self, config: Mapping[str, Any], step: int = 0) -> None:
        resumed = any(self._folder.glob("events.out.tfevents.*"))
        self._file = EventFile(self._folder, purge_step=step + 1 if resumed else None)
        body = json.dumps(config, indent=2, ensure_ascii=False, default=str)
        self._file.text(step, "config", f"```json\n{body}\n```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._opened().scalars(step, {_tag(name): value for name, value in metrics.items()})

    def text(self, step: int, name: str, value: str) -> None:
        self._opened().text(step, name, value)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> EventFile:
        if self._file is None:
            raise RuntimeError("start() has not been called")
        return self._file


def _tag(name: str) -> str:
    if "/" in name:
        return name
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
