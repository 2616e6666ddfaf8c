"""The local record: `metrics.jsonl`, one object per logged step, and `events.jsonl`, one per event.

Every line is valid JSON by the standard, which knows no NaN: a value that is not finite is written as
null and named under `nonfinite`. A line torn by a crash is dropped when the file is next opened.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

_LOG = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"

# Legal inside a JSON string, but line ends to readers such as str.splitlines.
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file, leaving out torn lines; nothing if it does not exist."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            row = _parse(line)
            if row is not None:
                yield row


class JsonlTracker:
    """Keeps `metrics.jsonl` so that it reads as if the run had never been interrupted.

    A step has one row. Values logged later for the same step, such as its evaluation, join that row.
    """

    def __init__(self, workdir: Path, config: Any = None):
        self.path = workdir / METRICS_FILE
        self._events = EventLog(workdir)
        self._file: BinaryIO | None = None
        self._row: dict[str, Any] = {}
        self._row_at = 0

    def start(self, config: Mapping[str, Any], step: int = 0) -> None:
        """Drops rows beyond `step`, in one rename, and opens the file for the rest."""
        if self.path.exists():
            self._keep_until(step)
        self.path.touch()
        self._file = self.path.open("r+b", buffering=0)
        self._find_last_row()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row, or extends the last one if it is of the same step.

        Raises:
          OSError: the row could not be written; the file is as it was before.
        """
        if self._file is None:
            raise RuntimeError("start() has not been called")
        end = self._file.seek(0, os.SEEK_END)
        same = self._row.get("step") == step
        at = self._row_at if same else end
        row = _with_values(self._row if same else {"step": step}, metrics)
        line = _line(row)
        try:
            _write_at(self._file, line, at)
        except OSError:
            if same:
                _write_at(self._file, _line(self._row), at)  # in place, so a full disk does not matter
            self._file.truncate(end)
            raise
        self._file.truncate(at + len(line))
        self._row, self._row_at = row, at

    def text(self, step: int, name: str, value: str) -> None:
        """Records a text as an event; metrics.jsonl holds numbers only."""
        self._events.write("text", step=step, name=name, value=value)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep_until(self, step: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) == len(lines):
            return
        temporary = self.path.with_suffix(".jsonl.tmp")
        with temporary.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def _find_last_row(self) -> None:
        data = self.path.read_bytes()
        start = data.rfind(b"\n", 0, max(len(data) - 1, 0)) + 1
        self._row, self._row_at = _parse(data[start:]) or {}, start


class EventLog:
    """Appends to `events.jsonl`: what happened to the run, by wall clock, over all its processes.

    An event that cannot be written, as on a full disk, is lost; that is logged, and the run goes on.
    """

    def __init__(self, workdir: Path):
        self.path = workdir / EVENTS_FILE
        self._failing = False

    def write(self, kind: str, **fields: Any) -> None:
        """Adds `{"time": ISO 8601 in UTC, "kind": kind, **fields}`; opens the file each time."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = _line(plain({"time": time, "kind": kind, **fields}))
        try:
            self._append(line)
        except OSError as error:
            if not self._failing:
                _LOG.warning("%s: %s; events are lost until it can be written", self.path, error.strerror)
            self._failing = True
        else:
            self._failing = False

    def _append(self, line: bytes) -> None:
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # keep a torn line from spoiling this one
            file.write(line)


def plain(value: Any) -> Any:
    """A copy of nested mappings, sequences and scalars with every non-finite float as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):  # numpy's float64 is one as well
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def _with_values(row: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    new = dict(row)
    odd: dict[str, str] = dict(new.pop("nonfinite", {}))
    for name, value in metrics.items():
        number = value if isinstance(value, int) else float(value)
        finite = math.isfinite(number)
        new[name] = number if finite else None
        odd.pop(name, None)
        if not finite:
            odd[name] = str(number)
    return {**new, "nonfinite": odd} if odd else new


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_LINE_BREAKS)
    return text.encode(errors="replace") + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _step_of(line: bytes) -> float:
    step = (_parse(line) or {}).get("step")
    return step if isinstance(step, int) else math.inf


def _write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    file.seek(offset)
    while data:
        data = data[file.write(data) :]  # unbuffered: may take a part only
