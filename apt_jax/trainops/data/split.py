"""Documents kept out of training, for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from apt_jax.trainops.data.api import Document, Pair, RecordError, Source, Text, Tokens, where
from apt_jax.trainops.data.files import fingerprint
from apt_jax.trainops.data.hashing import derive, hash_indices

FEW_DOCUMENTS = 20  # below this, whole documents are too coarse a share
_SHORTEST = 2  # characters or ids on either side of the cut
_SEARCH_BREAK = 1000  # characters to look back for a place to cut a text


@dataclass(frozen=True)
class View:
    """Some documents of a source, a few of them only in part; itself a Source.

    Attributes:
      indices: int64 [n] numbers in the source.
      parts: for a document that is not whole, its number and the (first, behind last) of its characters
        (Text) or ids (Tokens).
    """

    source: Source
    indices: np.ndarray
    parts: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def fingerprint(self) -> str:
        chosen = (self.indices.astype("<i8").tobytes().hex(), sorted(self.parts.items()))
        return fingerprint([self.source.fingerprint, *chosen])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Document:
        number = int(self.indices[i])
        document = self.source[number]
        if number not in self.parts:
            return document
        first, last = self.parts[number]
        if isinstance(document, Text):
            return Text(document.text[first:last])
        assert isinstance(document, Tokens)  # _tail cuts nothing else
        return Tokens(document.ids[first:last])

    def where(self, i: int) -> str:
        return where(self.source, int(self.indices[i]))


def whole(source: Source) -> View:
    """Every document of a source."""
    return View(source, np.arange(len(source), dtype=np.int64))


def split(source: Source, fraction: float, seed: int, *, skip_bad: bool = False) -> tuple[View, View | None]:
    """Divides a source into training and held-out documents.

    From FEW_DOCUMENTS on, a document is held out by a hash of its number: about `fraction` of them, at
    least one. Of fewer plain documents, such as one long text, the tail is held out: the cut falls at a
    line or word end close to it, and both sides become documents. Fewer pairs are divided whole.

    Returns:
      Training documents, and the held-out ones; None if `fraction` is 0 or there is nothing to spare.
    """
    if fraction == 0:
        return whole(source), None
    if len(source) < FEW_DOCUMENTS:
        sizes = _plain_sizes(source, skip_bad)
        if sizes is not None:
            return _tail(source, sizes, fraction)
    if len(source) < 2:
        return whole(source), None
    hashes = hash_indices(len(source), derive(seed, "split"))
    held = hashes < np.uint64(min(int(fraction * 2.0**64), (1 << 64) - 1))
    held[np.argmin(hashes)] = True
    held[np.argmax(hashes)] = False
    return View(source, np.flatnonzero(~held)), View(source, np.flatnonzero(held))


def _plain_sizes(source: Source, skip_bad: bool) -> list[int] | None:
    """Characters or ids of each document; None if one has a prompt and must stay whole."""
    sizes = []
    for i in range(len(source)):
        try:
            document = source[i]
        except RecordError:
            if not skip_bad:
                raise
            sizes.append(0)
            continue
        if isinstance(document, Pair) or (isinstance(document, Tokens) and document.prompt_length):
            return None
        sizes.append(len(document.text) if isinstance(document, Text) else len(document.ids))
    return sizes


def _tail(source: Source, sizes: list[int], fraction: float) -> tuple[View, View | None]:
    first = np.cumsum([0, *sizes])
    cut = int(first[-1]) - max(_SHORTEST, round(int(first[-1]) * fraction))
    if cut < _SHORTEST:
        return whole(source), None
    number = int(np.searchsorted(first, cut, side="right")) - 1
    inside = _break_near(source[number], cut - int(first[number]))
    before, behind = np.arange(number, dtype=np.int64), np.arange(number, len(sizes), dtype=np.int64)
    if inside == 0:  # the cut falls between two documents
        return (View(source, before), View(source, behind)) if number else (whole(source), None)
    train = View(source, np.append(before, number), {number: (0, inside)})
    return train, View(source, behind, {number: (inside, sizes[number])})


def _break_near(document: Document, cut: int) -> int:
    """The last line end, else the last space, shortly before `cut`; else `cut` itself."""
    if not isinstance(document, Text):
        return cut
    for mark in ("\n", " "):
        found = document.text.rfind(mark, max(0, cut - _SEARCH_BREAK), cut)
        if found > 0:
            return found + 1
    return cut
