"""Folders of derived files: written whole or not at all, verified before use, replaced when stale."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from apt_jax.core.errors import DataError
from apt_jax.trainops.data.files import digest

META_FILE = "meta.json"
_TEMPORARY = ".writing-"
_ABANDONED = 24 * 3600  # seconds after which a half-written entry has no writer any more
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A verified folder and what its writer noted."""

    folder: Path
    meta: dict[str, Any]


@dataclass
class Writer:
    """Files of an entry in the making.

    Attributes:
      meta: values the reader gets back; must be JSON.
    """

    folder: Path
    meta: dict[str, Any] = field(default_factory=dict)
    _files: list[str] = field(default_factory=list)

    def open(self, name: str) -> IO[bytes]:
        """Opens a new file of the entry for writing."""
        self._files.append(name)
        return open(self.folder / name, "wb")

    def seal(self, key: str) -> None:
        """Notes every file's size and digest, and puts all on disk."""
        files = {}
        for name in self._files:
            path = self.folder / name
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            files[name] = {"size": path.stat().st_size, "sha256": digest(str(path))}
        with open(self.folder / META_FILE, "w", encoding="utf-8") as file:
            json.dump({"key": key, "files": files, "meta": self.meta}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def find(folder: Path, label: str, key: str) -> Entry | None:
    """Returns the entry of that label and key, after checking every byte; None if there is none.

    A damaged entry is removed with a warning, to be made again.
    """
    path = _place(folder, label, key)
    if not path.is_dir():
        return None
    try:
        sealed = json.loads((path / META_FILE).read_text(encoding="utf-8"))
        whole = sealed["key"] == key and all(
            (path / name).stat().st_size == facts["size"] and digest(str(path / name)) == facts["sha256"]
            for name, facts in sealed["files"].items()
        )
        meta = dict(sealed["meta"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        whole, meta = False, {}
    if not whole:
        _log.warning("%s: damaged; making it again", path)
        _remove(path)
        return None
    return Entry(path, meta)


@contextmanager
def writing(folder: Path, label: str, key: str) -> Iterator[Writer]:
    """Yields a writer whose files appear as an entry when the block ends well, and vanish otherwise.

    Several processes may write the same entry at once: the first to finish wins, the others' is dropped.
    Older entries of the label, and what crashed writers left, are removed.

    Raises:
      DataError: the folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{label}-", dir=folder))
        os.chmod(temporary, 0o755)  # mkdtemp makes it private; a run's files are for everyone to read
        writer = Writer(temporary)
        yield writer
        writer.seal(key)
        target = _place(folder, label, key)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
        _tidy(folder, label, keep=target)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or use another --workdir"
        ) from error
    finally:
        if temporary is not None:
            _remove(temporary)


def _place(folder: Path, label: str, key: str) -> Path:
    # The dot keeps label `a` from claiming the entries of label `a-b`.
    return folder / f"{label}.{key[:24]}"


def _tidy(folder: Path, label: str, keep: Path) -> None:
    for path in folder.iterdir():
        stale = path.name.rpartition(".")[0] == label and path != keep
        left = path.name.startswith(_TEMPORARY) and time.time() - path.stat().st_mtime > _ABANDONED
        if stale or left:
            _remove(path)


def _remove(path: Path) -> None:
    # Another process may be removing it as well, which is as good.
    shutil.rmtree(path, ignore_errors=True)
