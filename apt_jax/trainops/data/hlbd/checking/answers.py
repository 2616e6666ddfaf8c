"""What a right answer is: an exact text, or a number with a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

_NUMBER = re.compile(r"(-?\d+(?:\.(\d+))?)(.*)")
_UNITS = {"°": "度", "米": "m", "秒": "s", "摄氏度": "℃", "倍": ""}


class Rule(Protocol):
    """Tells right answers from wrong ones; `str()` shows a right one."""

    def accepts(self, answer: str) -> bool: ...


@dataclass(frozen=True)
class Exactly:
    """One of some texts; spaces, letter case and multiplication signs (W = F × s) aside."""

    texts: tuple[str, ...]

    def accepts(self, answer: str) -> bool:
        return _plain(answer) in {_plain(text) for text in self.texts}

    def __str__(self) -> str:
        return self.texts[0]


@dataclass(frozen=True)
class Number:
    """An exact value with its unit; where `rounded` is set, also the value correctly rounded to the
    decimals that the answer shows (at least one; a tie may go either way)."""

    value: Fraction
    unit: str = ""
    rounded: bool = False

    def accepts(self, answer: str) -> bool:
        match = _NUMBER.fullmatch(_plain(answer))
        if match is None or _UNITS.get(match[3], match[3]) != _plain(self.unit):
            return False
        error = abs(Fraction(match[1]) - self.value)
        decimals = len(match[2] or "")
        return error == 0 or (self.rounded and decimals > 0 and error <= Fraction(1, 2 * 10**decimals))

    def __str__(self) -> str:
        return f"{float(self.value):.12g}{self.unit}"


def _plain(text: str) -> str:
    return "".join(text.replace("×", "").split()).casefold()
