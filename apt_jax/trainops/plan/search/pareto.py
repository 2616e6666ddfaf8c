"""Which of several things are worth choosing from, when less of two figures is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Point = tuple[float, ...]  # less is better in each


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def front(items: Sequence[T], point: Callable[[T], tuple[float, float]]) -> list[T]:
    """The items that none of the others dominates, by their second figure; of equal ones the first."""
    best: list[T] = []
    least = float("inf")
    for item in sorted(items, key=lambda item: (point(item)[1], point(item)[0])):  # stable
        if point(item)[0] < least:
            best.append(item)
            least = point(item)[0]
    return best


def fronts(items: Sequence[T], point: Callable[[T], tuple[float, float]], enough: int) -> list[list[T]]:
    """The front, the front of what is left without it, and so on, until there are `enough` items."""
    left, found = list(items), []
    while left and sum(map(len, found)) < enough:
        best = front(left, point)
        found.append(best)
        taken = set(map(id, best))
        left = [item for item in left if id(item) not in taken]
    return found


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at equal distances, both ends among them."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
