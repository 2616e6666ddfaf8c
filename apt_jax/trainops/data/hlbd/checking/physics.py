"""Works physics questions out from named quantities, in exact fractions."""

from __future__ import annotations

import re
from fractions import Fraction

from apt_jax.trainops.data.hlbd.checking.answers import Number

# product = factor × factor, with units.
_RELATIONS = (
    ("路程:m", "速度:m/s", "时间:s"),
    ("质量:g", "密度:g/cm³", "体积:cm³"),
    ("压力:N", "压强:Pa", "受力面积:m²"),
    ("合力:N", "质量:kg", "加速度:m/s²"),
    ("功:J", "力:N", "距离:m"),
    ("功:J", "功率:W", "时间:s"),
    ("电压:V", "电流:A", "电阻:Ω"),
    ("电功率:W", "电压:V", "电流:A"),
    ("重力:N", "质量:kg", "g:N/kg"),
)
_NAMES = sorted({part.partition(":")[0] for parts in _RELATIONS for part in parts}, key=len, reverse=True)
_NAME = "|".join(_NAMES)
_GIVEN = re.compile(rf"({_NAME})=?(\d+(?:\.\d+)?)(?:[a-zA-ZΩ³²/]+)")
_ASKED = re.compile(rf"({_NAME})(?:是多少[a-zA-ZΩ³²/]+)?？")
_UNIT_FACTORS = {
    ("km", "m"): "1000", ("kg", "g"): "1000", ("m", "cm"): "100",
    ("h", "min"): "60", ("min", "s"): "60", ("m/s", "km/h"): "3.6",
}  # fmt: skip
_CONVERSION = re.compile(r"(\d+(?:\.\d+)?)([a-z/]+)=[?？]([a-z/]+)")


def rule(question: str) -> Number | None:
    if conversion := _CONVERSION.fullmatch(question):
        factor = _UNIT_FACTORS.get((conversion[2], conversion[3]))
        return Number(Fraction(conversion[1]) * Fraction(factor), conversion[3]) if factor else None
    question = re.sub(r"运动(\d+)米用了(\d+)秒", r"路程\1m，时间\2s", question)
    asked = _ASKED.search(_GIVEN.sub("", question))
    return (
        _solve({name: Fraction(value) for name, value in _GIVEN.findall(question)}, asked[1])
        if asked
        else None
    )


def _solve(given: dict[str, Fraction], asked: str) -> Number | None:
    for relation in _RELATIONS:
        names, units = zip(*(part.split(":") for part in relation), strict=True)
        if asked not in names or {*given, asked} != set(names) or len(given) != 2:
            continue
        product, one, other = (given.get(name) for name in names)
        if product is None:
            value = (one or 0) * (other or 0)
        else:
            divisor = one if other is None else other
            if not divisor:
                return None
            value = product / divisor
        return Number(Fraction(value), units[names.index(asked)], rounded=True)
    return None
