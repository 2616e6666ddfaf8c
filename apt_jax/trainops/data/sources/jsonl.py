"""JSON Lines, plain or gzipped: one object per line, reached by byte offset."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Document, RecordError
from apt_jax.trainops.data.files import expand, fingerprint, label, unreadable
from apt_jax.trainops.data.sources.records import RecordReader

_BLOCK = 1 << 22
_SHORTEST_OBJECT = 8  # bytes; a shorter line may be blank and is looked at
_BLANK = b"\xef\xbb\xbf \t\r\n"


class JsonlSource:
    """Every line that is not blank is a record."""

    def __init__(self, files: Sequence[str], reader: RecordReader):
        """Scans the files once for their line ends; raises DataError if one cannot be read."""
        self._files = tuple(_LineFile(file) for file in files)
        self._reader = reader
        self._first = np.cumsum([0, *(len(file) for file in self._files)])
        self.name = label(files)
        self.fingerprint = fingerprint(["jsonl", *reader.fields, *(file.sha256 for file in self._files)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, i: int) -> Document:
        """Raises RecordError, naming file and line, if the line is not a usable JSON object."""
        file, k = self._locate(i)
        line = file.line(k)
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            raise RecordError(self.where(i), f"not UTF-8 text ({byte})") from error
        except json.JSONDecodeError as error:
            problem = f"not valid JSON ({error.msg} at column {error.colno})"
            raise RecordError(self.where(i), problem) from error
        except (RecursionError, ValueError) as error:  # nested a thousand deep; an integer of 5000 digits
            raise RecordError(self.where(i), f"not usable JSON ({error})") from error
        return self._reader.document(record, self.where(i))

    def where(self, i: int) -> str:
        """`file:line` of document i."""
        file, k = self._locate(i)
        return f"{file.path}:{file.numbers[k]}"

    def _locate(self, i: int) -> tuple[_LineFile, int]:
        which = int(np.searchsorted(self._first, i, side="right")) - 1
        return self._files[which], i - int(self._first[which])


class _LineFile:
    """The lines of one file that are not blank.

    Attributes:
      starts: int64 [n] byte offset of each line (in the unpacked bytes, if gzipped).
      ends: int64 [n] offset behind it, line end excluded.
      numbers: int64 [n] line numbers, from 1.
      sha256: digest (hex) of the unpacked bytes.
    """

    def __init__(self, path: str):
        self.path = path
        self._lock = threading.Lock()
        with _open(path) as stream:
            ends, size, self.sha256 = _scan(path, stream)
        starts = np.concatenate([[0], ends + 1])
        ends = np.append(ends, size)
        self._handle = _open(path)
        weakref.finalize(self, self._handle.close)
        # Only lines too short for an object need a look to tell blank ones from bad ones.
        short = np.flatnonzero(ends - starts < _SHORTEST_OBJECT)
        blank = [i for i in short if not self._read(int(starts[i]), int(ends[i])).strip(_BLANK)]
        keep = np.ones(len(starts), bool)
        keep[blank] = False
        if not keep.any():
            raise DataError(f"{path}: holds only blank lines; fill it or remove it from data.path")
        self.starts, self.ends, self.numbers = starts[keep], ends[keep], np.flatnonzero(keep) + 1

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, k: int) -> bytes:
        """The bytes of line k; in a gzipped file going forward is fast, going back unpacks it again."""
        return self._read(int(self.starts[k]), int(self.ends[k]))

    def _read(self, start: int, end: int) -> bytes:
        with self._lock:
            try:
                self._handle.seek(start)
                return self._handle.read(end - start)
            except (OSError, EOFError, zlib.error) as error:
                raise _unreadable(self.path, error) from error


def _open(path: str) -> IO[bytes]:
    try:
        return gzip.open(path) if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise unreadable(path, error) from error


def _scan(path: str, stream: IO[bytes]) -> tuple[np.ndarray, int, str]:
    """Returns the offsets (int64) of the line feeds, the size in bytes, and the digest."""
    sha, size, breaks = hashlib.sha256(), 0, [np.zeros(0, np.int64)]
    for piece in _pieces(path, stream):
        if size == 0 and b"\0" in piece[:4096]:
            raise DataError(f"{path}: is not a JSON Lines file (holds zero bytes); take it out of data.path")
        sha.update(piece)
        breaks.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")) + size)
        size += len(piece)
    return np.concatenate(breaks), size, sha.hexdigest()


def _pieces(path: str, stream: IO[bytes]) -> Iterator[bytes]:
    try:
        while piece := stream.read(_BLOCK):
            yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataError:
    if isinstance(error, gzip.BadGzipFile | EOFError | zlib.error):
        return DataError(f"{path}: damaged gzip file ({error}); fetch or compress it again")
    return unreadable(path, error if isinstance(error, OSError) else OSError(str(error)))


def jsonl_source(paths: tuple[str, ...], config: DataConfig) -> JsonlSource:
    """Opens JSON Lines files, folders of them, or globs."""
    return JsonlSource(expand(paths, "jsonl"), RecordReader.of(config))
