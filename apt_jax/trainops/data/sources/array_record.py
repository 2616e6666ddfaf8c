"""ArrayRecord files: one record is a JSON object, or else a plain UTF-8 text. Needs extra `array_record`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Document, RecordError, Text
from apt_jax.trainops.data.files import digest, expand, fingerprint, label
from apt_jax.trainops.data.sources.records import RecordReader


class ArrayRecordSource:
    """Random access through grain's ArrayRecord reader, which checks every record's digest."""

    def __init__(self, files: Sequence[str], reader: RecordReader):
        """Raises DataError if the package is missing or a file is damaged."""
        try:
            import array_record.python.array_record_data_source  # noqa: F401 (grain imports it late)
            from grain.sources import ArrayRecordDataSource
        except ImportError as error:
            raise DataError(
                f"{files[0]}: reading ArrayRecord needs array_record; pip install 'apt-jax[array-record]'"
            ) from error
        self._paths, self._reader = tuple(files), reader
        self._files = []
        for path in files:
            try:
                self._files.append(ArrayRecordDataSource([path]))
            except (RuntimeError, ValueError, OSError) as error:
                raise _damaged(path, error) from error
        self._first = np.cumsum([0, *(len(file) for file in self._files)])
        if not len(self):
            raise DataError(f"{label(files)}: has no records; remove it from data.path or fill it")
        self.name = label(files)
        self.fingerprint = fingerprint(["array_record", *reader.fields, *(digest(path) for path in files)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, i: int) -> Document:
        """Raises RecordError naming file and record if it holds no document, DataError if it is damaged."""
        which, k = self._locate(i)
        try:
            payload = bytes(self._files[which][k])
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(self._paths[which], error) from error
        try:
            text = payload.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"is neither JSON nor UTF-8 text (byte 0x{payload[error.start]:02x})"
            raise RecordError(self.where(i), problem) from error
        if not text.startswith("{"):
            return Text(text)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return Text(text)  # a text may begin with a brace, too
        return self._reader.document(record, self.where(i))

    def where(self, i: int) -> str:
        """File and record (from 1) of document i."""
        which, k = self._locate(i)
        return f"{self._paths[which]}: record {k + 1}"

    def _locate(self, i: int) -> tuple[int, int]:
        which = int(np.searchsorted(self._first, i, side="right")) - 1
        return which, i - int(self._first[which])


def _damaged(path: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"{path}: not a readable ArrayRecord file ({reason}); fetch or write it again")


def array_record_source(paths: tuple[str, ...], config: DataConfig) -> ArrayRecordSource:
    """Opens ArrayRecord files, folders of them, or globs."""
    return ArrayRecordSource(expand(paths, "array_record"), RecordReader.of(config))
