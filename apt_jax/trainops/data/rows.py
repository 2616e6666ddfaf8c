"""Rows as arrays."""

from __future__ import annotations

import numpy as np

from apt_jax.trainops.data.packing import RowTable
from apt_jax.trainops.data.tokenized import TokenStore

Batch = dict[str, np.ndarray]


def empty_batch(rows: int, row_length: int, pad_id: int) -> Batch:
    """A batch [B, T] of nothing but padding: segment 0, nothing learned."""
    shape = (rows, row_length)
    return {
        "tokens": np.full(shape, pad_id, np.int32),
        "targets": np.full(shape, pad_id, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, np.float32),
    }


def fill(batch: Batch, at: np.ndarray, store: TokenStore, table: RowTable, rows: np.ndarray) -> None:
    """Writes rows `rows` [R] of a table into places `at` [R] of a batch.

    Within a row, segments count from 1 and positions from 0 in each; a target is the next token of the
    same document, and is learned (loss_mask 1) unless it is part of a prompt.
    """
    pieces_in_row = table.first[rows + 1] - table.first[rows]
    piece = _ranges(table.first[rows], pieces_in_row)
    segment = _ranges(np.ones(len(rows), np.int64), pieces_in_row)
    row = np.repeat(at, pieces_in_row)

    length = table.length[piece].astype(np.int64)
    position = _ranges(np.zeros(len(piece), np.int64), length)
    source = np.repeat(table.start[piece], length) + position
    places_in_row = np.add.reduceat(length, np.cumsum(pieces_in_row) - pieces_in_row)
    column = _ranges(np.zeros(len(rows), np.int64), places_in_row)
    where = (np.repeat(row, length), column)

    batch["tokens"][where] = store.tokens[source]
    batch["targets"][where] = store.tokens[source + 1]
    batch["segment_ids"][where] = np.repeat(segment, length)
    batch["positions"][where] = position
    batch["loss_mask"][where] = source + 1 >= np.repeat(table.learn_from[piece], length)


def _ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Concatenates start[i], start[i] + 1, … (count[i] of them), over i."""
    before = np.cumsum(count) - count
    return np.arange(int(count.sum())) + np.repeat(start - before, count)
