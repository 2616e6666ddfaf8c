"""Parquet files: one row is one record. Needs pyarrow (extra `parquet`)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Document
from apt_jax.trainops.data.files import digest, expand, fingerprint, label
from apt_jax.trainops.data.sources.records import RecordReader


class ParquetSource:
    """Reads the configured columns, one row group in memory at a time."""

    def __init__(self, files: Sequence[str], reader: RecordReader):
        """Raises DataError if pyarrow is missing, a file is damaged, or has no usable column."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise DataError(
                f"{files[0]}: reading Parquet needs pyarrow; pip install 'apt-jax[parquet]'"
            ) from error
        self._arrow_error: type[Exception] = pa.ArrowException
        self._paths, self._reader, self._lock = tuple(files), reader, threading.Lock()
        self._open = pq.ParquetFile
        sizes: list[int] = []
        self._groups: list[tuple[int, int]] = []  # (file, row group) in order
        for number, path in enumerate(files):
            try:
                with pq.ParquetFile(path) as file:
                    names = set(file.schema_arrow.names)
                    rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(path, error) from error
            if not reader.usable(names):
                raise DataError(f"{path}: {reader.missing(names)}")
            sizes += rows
            self._groups += [(number, g) for g in range(len(rows))]
        self._first = np.cumsum([0, *sizes])
        if not len(self):
            raise DataError(f"{label(files)}: has no rows; remove it from data.path or fill it")
        self._held: tuple[int, dict[str, Any]] = (-1, {})
        self.name = label(files)
        self.fingerprint = fingerprint(["parquet", *reader.fields, *(digest(path) for path in files)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, i: int) -> Document:
        """Raises RecordError naming file and row: no document in it; DataError: the file is damaged."""
        group, row = self._locate(i)
        record = {name: column[row].as_py() for name, column in self._columns(group).items()}
        return self._reader.document(record, self.where(i))

    def where(self, i: int) -> str:
        """File and row (from 1) of document i."""
        group, _ = self._locate(i)
        number, inside = self._groups[group]
        return f"{self._paths[number]}: row {i - int(self._first[group - inside]) + 1}"

    def _locate(self, i: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._first, i, side="right")) - 1
        return group, i - int(self._first[group])

    def _columns(self, group: int) -> dict[str, Any]:
        with self._lock:
            if self._held[0] != group:
                number, inside = self._groups[group]
                try:
                    with self._open(self._paths[number]) as file:
                        names = [name for name in self._reader.fields if name in file.schema_arrow.names]
                        table = file.read_row_group(inside, columns=names)
                except (self._arrow_error, OSError) as error:
                    raise self._damaged(self._paths[number], error) from error
                self._held = (group, {name: table.column(name) for name in names})
            return self._held[1]

    @staticmethod
    def _damaged(path: str, error: Exception) -> DataError:
        reason = " ".join(str(error).split())
        return DataError(f"{path}: not a readable Parquet file ({reason}); fetch or write it again")


def parquet_source(paths: tuple[str, ...], config: DataConfig) -> ParquetSource:
    """Opens Parquet files, folders of them, or globs."""
    return ParquetSource(expand(paths, "parquet"), RecordReader.of(config))
