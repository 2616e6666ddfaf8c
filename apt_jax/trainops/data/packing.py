"""Which tokens go into which row, decided once.

A document of n tokens has n − 1 predictions, so it takes n − 1 places: its last token is only ever a
target. Every place of a row that is not padding therefore predicts something, and every
(token, next token) of every document has exactly one place, whatever the packing:

* `fit`: whole documents, best-fit decreasing within blocks of shuffled documents. A document longer
  than a row fills rows of its own, and its remainder is packed like a short document.
* `split`: documents one after another, cut wherever a row ends; only the last row has padding.
* `none`: one document a row, a longer one over several rows.

A cut document goes on in another row as a segment of its own, its positions from 0 again; the last
target of a piece is the first token of the next, so that no prediction is lost at the cut.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np

from apt_jax.trainops.data.hashing import derive, permutation
from apt_jax.trainops.data.tokenized import TokenStore

BLOCK = 4096  # pieces packed together; larger blocks pad less and cost no more
Packing = Literal["fit", "split", "none"]


@dataclass(frozen=True)
class RowTable:
    """R rows made of P pieces of documents.

    Attributes:
      first: int64 [R + 1]; row r is pieces first[r] … first[r + 1] − 1, left to right.
      start: int64 [P] where a piece's input tokens begin in the store.
      length: int32 [P] places of the row it takes.
      learn_from: int64 [P] the first token in the store that is learned as a target (behind the prompt).
      row_length: places of a row, T.
    """

    first: np.ndarray
    start: np.ndarray
    length: np.ndarray
    learn_from: np.ndarray
    row_length: int

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def places(self) -> int:
        """Places that are not padding."""
        return int(self.length.sum(dtype=np.int64))


def pack(
    store: TokenStore,
    row_length: int,
    packing: Packing,
    *,
    seed: int,
    shuffle: bool = True,
    train_on_prompt: bool = False,
) -> RowTable:
    """Lays out every document of a store.

    Args:
      row_length: places of a row, T.
      seed: decides, with `shuffle`, which documents come together. Without, they keep their order
        ('split', 'none'), or stay within a block of their neighbours ('fit').
      train_on_prompt: learn the tokens of a prompt, too.
    """
    count = len(store)
    order = permutation(count, derive(seed, "pack")) if shuffle else np.arange(count)
    start = store.offsets[:-1][order]
    places = np.diff(store.offsets)[order] - 1
    learn_from = start + (0 if train_on_prompt else store.prompts[order])
    if packing == "split":
        document, begin, length, row = _split(places, row_length)
    else:
        document, begin, length = _cut(places, row_length)
        row = _best_fit(length, row_length) if packing == "fit" else np.arange(len(length))
    by_row = np.argsort(row, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(row))])
    return RowTable(
        first=first.astype(np.int64),
        start=(start[document] + begin)[by_row],
        length=length[by_row].astype(np.int32),
        learn_from=learn_from[document][by_row],
        row_length=row_length,
    )


def _cut(places: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of at most a row: int64 document, begin within it, length; in document order."""
    pieces = -(-places // row_length)
    document = np.repeat(np.arange(len(places)), pieces)
    begin = (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * row_length
    return document, begin, np.minimum(row_length, places[document] - begin)


def _split(
    places: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Pieces between the ends of documents and rows: document, begin within it, length, row."""
    ends = np.cumsum(places)
    total = int(ends[-1])
    begins = np.union1d(ends - places, np.arange(0, total, row_length))
    document = np.searchsorted(ends, begins, side="right")
    length = np.diff(np.append(begins, total))
    return document, begins - (ends - places)[document], length, begins // row_length


def _best_fit(length: np.ndarray, row_length: int) -> np.ndarray:
    """Row (int64) of each piece; rows are numbered by their first piece."""
    rows = np.empty(len(length), np.int64)
    full = length == row_length
    count = int(full.sum())
    rows[full] = np.arange(count)
    rest = np.flatnonzero(~full)
    for k in range(0, len(rest), BLOCK):
        block = rest[k : k + BLOCK]
        bins, used = _best_fit_decreasing(length[block], row_length)
        rows[block] = bins + count
        count += used
    _, seen, inverse = np.unique(rows, return_index=True, return_inverse=True)
    rank = np.empty(count, np.int64)
    rank[np.argsort(seen, kind="stable")] = np.arange(count)
    return rank[inverse]


def _best_fit_decreasing(length: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Longest first, each into the fullest bin it fits; returns each one's bin and the number of bins.

    Uses at most 11/9 of the least possible number of bins, plus one (Johnson 1973). grain's packers
    take a stream; a row by number needs the layout beforehand.
    """
    bins = np.empty(len(length), np.int64)
    room: list[int] = []  # what open bins have left, ascending; `owner` names them
    owner: list[int] = []
    used = 0
    sizes = length.tolist()
    for i in np.argsort(-length, kind="stable").tolist():
        at = bisect_left(room, sizes[i])
        if at == len(room):
            left, bin_ = capacity - sizes[i], used
            used += 1
        else:
            left, bin_ = room.pop(at) - sizes[i], owner.pop(at)
        bins[i] = bin_
        if left:
            at = bisect_left(room, left)
            room.insert(at, left)
            owner.insert(at, bin_)
    return bins, used
