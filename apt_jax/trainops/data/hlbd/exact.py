"""Numbers as exact decimals: no float ever takes part in an answer."""

from __future__ import annotations

from fractions import Fraction

MAX_DECIMALS = 2  # no question is asked whose exact answer needs more


def is_short(value: Fraction | int, decimals: int = MAX_DECIMALS) -> bool:
    """Whether `value` is written exactly with at most `decimals` digits after the point."""
    return (Fraction(value) * 10**decimals).denominator == 1


def decimal(value: Fraction | int) -> str:
    """The exact decimal form, without trailing zeros: 121/2 → "60.5", 3 → "3".

    Raises ValueError when the value has no exact form of at most `MAX_DECIMALS` decimals: answers
    are never rounded, a question with such an answer is not asked.
    """
    value = Fraction(value)
    if not is_short(value):
        raise ValueError(f"{value} has no exact decimal form of at most {MAX_DECIMALS} decimals")
    scaled = int(value * 10**MAX_DECIMALS)
    whole, rest = divmod(abs(scaled), 10**MAX_DECIMALS)
    digits = f"{rest:0{MAX_DECIMALS}d}".rstrip("0")
    return f"{'-' if scaled < 0 else ''}{whole}{'.' if digits else ''}{digits}"
