"""Works zodiac questions out by counting along the cycle."""

from __future__ import annotations

import re

from apt_jax.trainops.data.hlbd.checking.answers import Exactly

CYCLE = (
    "鼠子水",
    "牛丑土",
    "虎寅木",
    "兔卯木",
    "龙辰土",
    "蛇巳火",
    "马午火",
    "羊未土",
    "猴申金",
    "鸡酉金",
    "狗戌土",
    "猪亥水",
)
ANIMALS = [entry[0] for entry in CYCLE]
BRANCHES = [entry[1] for entry in CYCLE]
STEMS = "甲乙丙丁戊己庚辛壬癸"
FIRST_YEAR = 4  # of the common era: 甲子, a year of the 鼠

_ANIMAL = "([鼠牛虎兔龙蛇马羊猴鸡狗猪])"
_STEPS = (
    (re.compile(f"{_ANIMAL}(?:往后数|后面第)(\\d+)个"), 1),
    (re.compile(f"{_ANIMAL}(?:往前数|前面第)(\\d+)个"), -1),
)
_NEIGHBOURS = (
    (re.compile(f"{_ANIMAL}(?:的后一个|的下一个|后面是|之后)|紧跟{_ANIMAL}"), 1),
    (re.compile(f"{_ANIMAL}(?:的前一个|的上一个|前面是|之前)|紧挨{_ANIMAL}前面"), -1),
)


def rule(question: str) -> Exactly | None:
    if year := re.search(r"(\d{4})年", question):
        return _of_year(question, int(year[1]) - FIRST_YEAR)
    for pattern, direction in _STEPS:
        if match := pattern.search(question):
            return _animal(ANIMALS.index(match[1]) + direction * int(match[2]))
    for pattern, direction in _NEIGHBOURS:
        if match := pattern.search(question):
            return _animal(ANIMALS.index(match[1] or match[2]) + direction)
    if place := re.search(r"第(\d+)", question):
        return _animal(int(place[1]) - 1)
    return _property(question)


def _of_year(question: str, years: int) -> Exactly:
    if "干支" in question:
        return Exactly((STEMS[years % 10] + BRANCHES[years % 12],))
    return _animal(years)


def _property(question: str) -> Exactly | None:
    if animal := re.search(_ANIMAL, question):
        place = ANIMALS.index(animal[1])
        if "五行" in question:
            return Exactly((CYCLE[place][2],))
        if "地支" in question:
            return Exactly((BRANCHES[place],))
        if "排第几" in question or "序号" in question:
            return Exactly((str(place + 1),))
        return None
    if branch := re.search(f"地支([{''.join(BRANCHES)}])|([{''.join(BRANCHES)}])时", question):
        return _animal(BRANCHES.index(branch[1] or branch[2]))
    return None


def _animal(place: int) -> Exactly:
    animal = ANIMALS[place % 12]
    return Exactly((animal, f"{animal}年"))
