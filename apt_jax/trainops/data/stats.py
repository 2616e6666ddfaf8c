"""How much data there is, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from apt_jax.trainops.data.batches import Part


@dataclass(frozen=True)
class SourceStats:
    """One source.

    Attributes:
      documents: documents used.
      tokens: their tokens, special ones included.
      rows: rows of an epoch.
      places: places in these rows, padding included.
      filled: places that hold a token.
      skipped: bad records left out; `first_skipped` tells the first.
      empty: documents left out because there is nothing in them to predict.
      weight: its weight in the mixture.
    """

    documents: int
    tokens: int
    rows: int
    places: int
    filled: int
    skipped: int
    empty: int
    weight: float
    first_skipped: str = ""

    @classmethod
    def of(cls, part: Part, weight: float) -> Self:
        rows = len(part.table)
        return cls(
            documents=len(part.store),
            tokens=int(part.store.offsets[-1]),
            rows=rows,
            places=rows * part.table.row_length,
            filled=part.table.places,
            skipped=part.store.skipped,
            empty=part.store.empty,
            weight=weight,
            first_skipped=part.store.first_skipped,
        )

    @property
    def padding(self) -> float:
        """Share of the places that hold nothing."""
        return 1 - self.filled / self.places


@dataclass(frozen=True)
class DataStats:
    """All sources by name; the totals are those of the training data."""

    train: Mapping[str, SourceStats]
    eval: Mapping[str, SourceStats]

    @property
    def documents(self) -> int:
        return sum(s.documents for s in self.train.values())

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.train.values())

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.train.values())

    @property
    def padding(self) -> float:
        """Share of the places that hold nothing."""
        return 1 - sum(s.filled for s in self.train.values()) / sum(s.places for s in self.train.values())

    @property
    def skipped(self) -> int:
        """Bad records left out, of training and evaluation together."""
        return sum(s.skipped for part in (self.train, self.eval) for s in part.values())

    def summary(self) -> str:
        """One line for the run's header."""
        held_out = sum(s.documents for s in self.eval.values())
        line = (
            f"{self.documents:,} documents, {self.tokens:,} tokens, {self.rows:,} rows "
            f"({self.padding:.1%} padding), {held_out:,} documents held out"
        )
        if not self.skipped:
            return line
        first = next(s.first_skipped for p in (self.train, self.eval) for s in p.values() if s.first_skipped)
        return f"{line}, {self.skipped:,} bad records left out (first: {first})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for reports."""
        return asdict(self)
