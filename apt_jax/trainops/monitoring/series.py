"""Curves of bounded size, and how to draw one in a line of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-~=+*#"


class Series:
    """At most `capacity` real points (step, value) of a curve, evenly spread over its length.

    When it is full every second point is left out and from then on only every second one taken, and
    so on; the newest point is always there. Nothing is averaged or made up.
    """

    def __init__(self, capacity: int = 2000):
        self._capacity = capacity
        self._points: list[tuple[int, float]] = []
        self._stride = 1
        self._count = 0
        self._last: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """Adds a point; steps must not decrease."""
        self._last = (step, value)
        if self._count % self._stride == 0:
            self._points.append(self._last)
            if len(self._points) > self._capacity:
                self._points = self._points[::2]
                self._stride *= 2
        self._count += 1

    def points(self) -> list[tuple[int, float]]:
        """The points in order of their steps."""
        if self._last is None or self._points[-1] == self._last:
            return list(self._points)
        return [*self._points, self._last]

    @property
    def last(self) -> float | None:
        """The newest value, None if there is none."""
        return self._last[1] if self._last else None


def sparkline(values: Sequence[float], width: int, ascii_only: bool = False) -> str:
    """Draws finite values in at most `width` characters; a column is the mean of its share."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    marks = _ASCII if ascii_only else _BLOCKS
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((v - low) * scale)] for v in means)
