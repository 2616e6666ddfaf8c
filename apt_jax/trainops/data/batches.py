"""Batches as a function of the step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import grain
import numpy as np
from grain.experimental import index_shuffle

from apt_jax.trainops.data.hashing import derive
from apt_jax.trainops.data.mixture import Mixture
from apt_jax.trainops.data.packing import RowTable
from apt_jax.trainops.data.rows import Batch, empty_batch, fill
from apt_jax.trainops.data.tokenized import TokenStore

PADDING = -1  # stands for a source where a row is left empty
Order = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # row numbers → source or PADDING, its row


@dataclass(frozen=True)
class Part:
    """The rows of one source."""

    name: str
    store: TokenStore
    table: RowTable


def endless(parts: Sequence[Part], weights: Sequence[float], *, seed: int, shuffle: bool) -> Order:
    """Order of training: sources by their shares, each source's rows once per epoch of its own."""
    mixture = Mixture(weights)
    sizes = [len(part.table) for part in parts]

    def order(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source, number = mixture.locate(rows)
        return source, np.array(
            [
                _shuffled(k, sizes[i], seed, parts[i].name, shuffle)
                for i, k in zip(source.tolist(), number.tolist(), strict=True)
            ],
            np.int64,
        )

    return order


def once(parts: Sequence[Part], *, seed: int, shuffle: bool) -> Order:
    """Order of evaluation: every row once, always alike; padding behind the last."""
    ends = np.cumsum([len(part.table) for part in parts])
    total = int(ends[-1])

    def order(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Shuffled, so that the first few batches stand for all sources.
        numbers = [_shuffled(g, total, seed, "eval", shuffle) if g < total else total for g in rows.tolist()]
        source = np.searchsorted(ends, numbers, side="right")
        before = np.append(ends - np.diff(ends, prepend=0), total)[source]
        return np.where(source == len(parts), PADDING, source), np.array(numbers, np.int64) - before

    return order


def _shuffled(k: int, size: int, seed: int, name: str, shuffle: bool) -> int:
    """The k-th row drawn from `size` rows: each comes once per epoch, in another order every epoch."""
    epoch, place = divmod(k, size)
    if not shuffle:
        return place
    key = derive(seed, "epoch", name, epoch) & 0xFFFFFFFF
    return index_shuffle(place, max_index=size - 1, seed=key, rounds=4)


class Batches:
    """Batches by step number.

    A batch depends on the data, the configuration and the step, and on nothing else: not on earlier
    calls, on the number of processes, or on where a run was continued. The data position of a
    checkpoint is thus the step.

    Attributes:
      batch_size: rows B of a batch, over all processes.
      row_length: tokens T of a row.
      rows_per_epoch: rows of all sources. Of several sources with weights, some are through sooner.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        order: Order,
        *,
        batch_size: int,
        pad_id: int,
        workers: int = 1,
        prefetch: int = 2,
    ):
        self.parts = tuple(parts)
        self.batch_size = batch_size
        self.row_length = parts[0].table.row_length
        self.rows_per_epoch = sum(len(part.table) for part in parts)
        self._order = order
        self._pad_id = pad_id
        self._read_options = grain.ReadOptions(
            num_threads=workers if prefetch else 0, prefetch_buffer_size=prefetch if workers else 0
        )

    def __len__(self) -> int:
        """Batches per epoch; the last one of an epoch may hold rows of the next, or padding."""
        return -(-self.rows_per_epoch // self.batch_size)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, in which a step begins."""
        return step * self.batch_size // self.rows_per_epoch

    def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
        """Returns rows of batch `step`: dict of arrays [R, T].

        `tokens`, `targets`, `segment_ids` (0 is padding), `positions`: int32; `loss_mask`: float32.

        Args:
          rows: int [R], from 0 to B - 1, as a process needs them; None: all B.
        """
        rows = np.arange(self.batch_size) if rows is None else np.asarray(rows)
        if step < 0 or len(rows) == 0 or rows.min() < 0 or rows.max() >= self.batch_size:
            raise ValueError(f"no batch {step} with rows {rows.tolist()} of {self.batch_size}")
        source, row = self._order(step * self.batch_size + rows)
        batch = empty_batch(len(rows), self.row_length, self._pad_id)
        for number, part in enumerate(self.parts):
            at = np.flatnonzero(source == number)
            if len(at):
                fill(batch, at, part.store, part.table, row[at])
        return batch

    def iterate(
        self,
        start_step: int = 0,
        stop_step: int | None = None,
        rows: np.ndarray | None = None,
    ) -> BatchIterator:
        """Batches start_step, start_step + 1, … prepared ahead by reading threads.

        Args:
          rows: as for `batch`.
          stop_step: the first batch not to prepare; None: no end.
        """
        last = sys.maxsize if stop_step is None else stop_step
        steps = grain.MapDataset.range(start_step, max(start_step, last))
        batches = steps.map(lambda step: self.batch(step, rows))
        return BatchIterator(iter(batches.to_iter_dataset(self._read_options)))


class BatchIterator:
    """Prefetched batches; `close`, or leaving a `with` block, ends the reading threads."""

    def __init__(self, batches: grain.DatasetIterator[Batch]):
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
