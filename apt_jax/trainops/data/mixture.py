"""Rows of several sources in given shares, by number alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CYCLE = 10_000  # rows after which the pattern repeats; shares are exact to 1 in this many


class Mixture:
    """Says which source row number g comes from, and how many of that source came before.

    After any number of rows, each source has had its share of them to within one row (Tijdeman 1980,
    "The chairman assignment problem": of the sources that may come now without getting ahead of their
    share, the one whose turn ends soonest).
    """

    def __init__(self, weights: Sequence[float]):
        """`weights` [m] are positive and need not sum to 1."""
        self.counts = _apportion(weights)
        self._pattern = _chairmen(self.counts)
        rank = np.empty(len(self._pattern), np.int64)
        for source, count in enumerate(self.counts):
            rank[self._pattern == source] = np.arange(count)
        self._rank = rank

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source (int64) of each row number, and its number within that source."""
        cycle, place = np.divmod(rows, len(self._pattern))
        source = self._pattern[place]
        return source, cycle * self.counts[source] + self._rank[place]


def _apportion(weights: Sequence[float]) -> np.ndarray:
    """Rows (int64, at least 1) of each source in a cycle; equal weights make the shortest cycle."""
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    whole = shares / shares.min()
    if np.allclose(whole, np.round(whole), rtol=0, atol=1e-9) and whole.sum() <= _CYCLE:
        counts = np.round(whole).astype(np.int64)
    else:
        counts = np.maximum(1, np.round(shares * _CYCLE).astype(np.int64))
    return counts // np.gcd.reduce(counts)


def _chairmen(counts: np.ndarray) -> np.ndarray:
    """Source (int64) of each row of a cycle in which source i comes counts[i] times."""
    total, kinds = int(counts.sum()), len(counts)
    pattern = np.zeros(total, np.int64)
    if kinds == 1:
        return pattern
    share = counts / total
    slack = 1 - 1 / (2 * kinds - 2)
    given = np.zeros(kinds)
    for k in range(total):
        # A source may have its next row once share·(k+1) ≥ given + 1 − slack, and must by given + slack.
        allowed = share * (k + 1) - given >= 1 - slack - 1e-9
        ends = np.where(allowed, (given + slack) / share, np.inf)
        pattern[k] = np.argmin(ends)
        given[pattern[k]] += 1
    return pattern
