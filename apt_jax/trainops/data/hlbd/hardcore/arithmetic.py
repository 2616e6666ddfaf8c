"""Arithmetic on natural numbers: sums, differences, products, exact quotients, three terms."""

from __future__ import annotations

from collections.abc import Iterator

from apt_jax.trainops.data.hlbd.records import Question
from apt_jax.trainops.data.hlbd.sampling import Item, Pool

SMALL = range(21)  # learned by heart first, like the tables
LARGE = range(100)
FACTOR = range(2, 16)


def pools() -> list[Pool[Question]]:
    """No result is negative or fractional."""
    return [
        _pool("small sums", 300, (_ask(f"{a}+{b}", a + b) for a in SMALL for b in SMALL)),
        _pool("sums", 350, (_ask(f"{a}+{b}", a + b) for a in LARGE for b in LARGE if max(a, b) not in SMALL)),
        _pool("small differences", 180, (_ask(f"{a}-{b}", a - b) for a in SMALL for b in range(a + 1))),
        _pool(
            "differences",
            330,
            (_ask(f"{a}-{b}", a - b) for a in LARGE if a not in SMALL for b in range(a + 1)),
        ),
        _pool("products", 170, (_ask(f"{a}×{b}", a * b) for a in FACTOR for b in FACTOR)),
        _pool("quotients", 170, (_ask(f"{a * b}÷{a}", b) for a in FACTOR for b in FACTOR)),
        _pool("product and sum", 200, _product_and_sum()),
        _pool("three terms", 200, _three_terms()),
    ]


def _product_and_sum() -> Iterator[Item[Question]]:
    for a in range(2, 10):
        for b in range(2, 10):
            for c in SMALL[1:]:
                yield _ask(f"{a}×{b}+{c}", a * b + c)
                yield _ask(f"{c}+{a}×{b}", c + a * b)
                if a * b >= c:
                    yield _ask(f"{a}×{b}-{c}", a * b - c)


def _three_terms() -> Iterator[Item[Question]]:
    for a in SMALL[1:]:
        for b in SMALL[1:]:
            for c in SMALL[1:]:
                yield _ask(f"{a}+{b}+{c}", a + b + c)
                if a + b >= c:
                    yield _ask(f"{a}+{b}-{c}", a + b - c)


def _ask(expression: str, value: int) -> Item[Question]:
    return Item(Question(f"{expression}=?", str(value)))


def _pool(name: str, weight: int, items: Iterator[Item[Question]]) -> Pool[Question]:
    return Pool(name, weight, tuple(items))
