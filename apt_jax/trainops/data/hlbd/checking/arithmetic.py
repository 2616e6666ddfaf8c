"""Evaluates "12 + 3 × 4 = ?" by precedence, in exact fractions."""

from __future__ import annotations

import re
from fractions import Fraction

from apt_jax.trainops.data.hlbd.checking.answers import Number

_EXPRESSION = re.compile(r"\s*(\d+(?:\s*[-+×÷*/]\s*\d+)+)\s*=\s*[?？]\s*")


def rule(question: str) -> Number | None:
    match = _EXPRESSION.fullmatch(question)
    if match is None:
        return None
    total = Fraction(0)
    for sign, term in re.findall(r"([-+]?)([^-+]+)", match[1].replace(" ", "")):
        value = _product(term)
        if value is None:
            return None
        total += -value if sign == "-" else value
    return Number(total)


def _product(term: str) -> Fraction | None:
    value = Fraction(1)
    for operator, digits in re.findall(r"([×÷*/]?)(\d+)", term):
        factor = Fraction(digits)
        if operator in ("÷", "/"):
            if not factor:
                return None
            factor = 1 / factor
        value *= factor
    return value
