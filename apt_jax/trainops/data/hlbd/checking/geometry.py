"""Works geometry questions out from the shape, the labelled numbers and the quantity they ask for."""

from __future__ import annotations

import re
from fractions import Fraction

from apt_jax.trainops.data.hlbd.checking.answers import Exactly, Number, Rule

_GIVEN = re.compile(r"(边长|棱长|(?<![边棱周])长|宽|半径|直径|顶角|底角|底|高)[为是]?(\d+)度?")
_ASKED = re.compile(r"表面积|面积|周长|体积|直径|半径|底角|顶角")
_TWO_ANGLES = re.compile(r"(\d+)度.*?(\d+)度")
_NUMERALS = {name: sides for sides, name in enumerate("三四五六七八九十", start=3)} | {"十一": 11, "十二": 12}
_POLYGON = re.compile(r"(正)?(十[一二]|[三四五六七八九十])(?:边形|角形)")


def rule(question: str) -> Rule | None:
    question = question.replace("°", "度")
    given = {name: Fraction(value) for name, value in _GIVEN.findall(question)}
    if given:
        asked = _ASKED.findall(_GIVEN.sub("", question))
        return _measured(question, given, asked[-1]) if asked else None
    if "三角形" in question and "第三" in question and (angles := _TWO_ANGLES.search(question)):
        return Number(180 - Fraction(angles[1]) - Fraction(angles[2]), "度")
    return _polygon(question)


def _measured(question: str, given: dict[str, Fraction], asked: str) -> Rule | None:
    match asked, given:
        case ("周长", {"边长": a}) if "正方形" in question:
            return Number(4 * a)
        case ("面积", {"边长": a}) if "正方形" in question:
            return Number(a * a)
        case ("周长", {"长": a, "宽": b}):
            return Number(2 * (a + b))
        case ("面积", {"长": a, "宽": b}):
            return Number(a * b)
        case ("面积", {"底": a, "高": h}) if "三角形" in question:
            return Number(a * h / 2)
        case ("底角", {"顶角": apex}):
            return Number((180 - apex) / 2, "度")
        case ("顶角", {"底角": base}):
            return Number(180 - 2 * base, "度")
        case ("直径", {"半径": r}):
            return Number(2 * r)
        case ("半径", {"直径": d}):
            return Number(d / 2)
        case ("周长", {"半径": r}):
            return _times_pi(2 * r)
        case ("面积", {"半径": r}):
            return _times_pi(r * r)
        case ("体积", {"棱长": a}):
            return Number(a**3)
        case ("表面积", {"棱长": a}):
            return Number(6 * a * a)
    return None


def _times_pi(factor: Fraction) -> Exactly:
    return Exactly(("π" if factor == 1 else f"{factor}π",))


def _polygon(question: str) -> Rule | None:
    match = _POLYGON.search(question)
    if match is None or "一个角" in question or "每个角" in question:
        return None
    sides = _NUMERALS[match[2]]
    if re.search(r"边数|[几多][少]?条边", question):
        return Number(Fraction(sides))
    if "内角和" in question:
        return Number(Fraction(180 * (sides - 2)), "度")
    if "对角线条数" in question:
        return Number(Fraction(sides * (sides - 3), 2))
    if match[1] and "对称轴" in question:
        return Number(Fraction(sides))
    return None
