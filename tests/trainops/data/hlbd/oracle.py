"""Answers worked out a second time, from the text of the question alone.

Nothing of the package is imported here: the two sides agree only if both are right.
"""

from __future__ import annotations

import ast
import operator
import re
from decimal import Decimal
from fractions import Fraction
from itertools import cycle

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def plain(value: Fraction) -> str:
    """The exact decimal form."""
    number = Decimal(value.numerator) / Decimal(value.denominator)
    assert Fraction(number) == value, f"{value} is no short decimal"
    return f"{number:f}".rstrip("0").rstrip(".") if "." in f"{number:f}" else f"{number:f}"


# --- arithmetic: Python's own parser gives the precedence


def arithmetic(question: str) -> str:
    assert question.endswith("=?")
    tree = ast.parse(question.removesuffix("=?").replace("×", "*").replace("÷", "/"), mode="eval")
    return plain(_value(tree.body))


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    return OPERATORS[type(node.op)](_value(node.left), _value(node.right))


# --- geometry: one pattern a question, in either of two wordings

NAMED = {
    ("正方形", "边长", "周长"): lambda a: plain(a + a + a + a),
    ("正方形", "边长", "面积"): lambda a: plain(a**2),
    ("等腰三角形", "顶角", "底角"): lambda a: plain(90 - a / 2) + "度",
    ("等腰三角形", "底角", "顶角"): lambda a: plain(180 - a - a) + "度",
    ("圆", "半径", "直径"): lambda r: plain(r + r),
    ("圆", "直径", "半径"): lambda d: plain(d * Fraction(1, 2)),
    ("圆", "半径", "周长"): lambda r: f"{plain(r * 2)}π",
    ("圆", "半径", "面积"): lambda r: f"{plain(r * r)}π" if r > 1 else "π",
    ("正方体", "棱长", "体积"): lambda a: plain(a * a * a),
    ("正方体", "棱长", "表面积"): lambda a: plain(a * a * 6),
}
SIDES = {
    "三角形": 3, "四边形": 4, "五边形": 5, "六边形": 6, "七边形": 7, "八边形": 8, "九边形": 9, "十边形": 10,
    "十一边形": 11, "十二边形": 12,
}  # fmt: skip
FORMULAS = {
    "正方形的周长": "C=4a", "正方形的面积": "S=a²", "长方形的周长": "C=2(a+b)", "长方形的面积": "S=ab",
    "三角形的面积": "S=ah÷2", "平行四边形的面积": "S=ah", "梯形的面积": "S=(a+b)h÷2", "圆的周长": "C=2πr",
    "圆的面积": "S=πr²", "正方体的体积": "V=a³", "长方体的体积": "V=abh", "圆柱的体积": "V=πr²h",
    "圆锥的体积": "V=πr²h÷3", "球的体积": "V=4πr³÷3", "球的表面积": "S=4πr²",
}  # fmt: skip


def geometry(question: str) -> str:
    shape = "(?P<shape>正方形|等腰三角形|圆|正方体)"
    for pattern in (
        rf"{shape}(?P<given>\D+?)(?P<n>\d+)度?，(?P<asked>.+)？",
        rf"求(?P<given>\D+?)(?P<n>\d+)度?的{shape}的(?P<asked>.+)",
    ):
        if match := re.fullmatch(pattern, question):
            return NAMED[match["shape"], match["given"], match["asked"]](Fraction(match["n"]))
    numbers = [Fraction(number) for number in re.findall(r"\d+", question)]
    if re.fullmatch(r"长方形长\d+宽\d+，(周长|面积)？|求长\d+宽\d+的长方形的(周长|面积)", question):
        a, b = numbers
        return plain(a * b) if "面积" in question else plain(a + b + a + b)
    if re.fullmatch(r"三角形底\d+高\d+，面积？|求底\d+高\d+的三角形的面积", question):
        return plain(numbers[0] * numbers[1] / 2)
    if re.fullmatch(r"三角形两角\d+度和\d+度，第三角？|求两角\d+度和\d+度的三角形的第三角", question):
        return plain(180 - sum(numbers)) + "度"
    if match := re.fullmatch(r"求?(\D+形)的(边数|内角和|对角线条数)？?", question):
        sides = SIDES[match[1]]
        pairs = sum(1 for a in range(sides) for b in range(a + 2, sides) if (a, b) != (0, sides - 1))
        triangles = sides - 2
        return {"边数": str(sides), "内角和": f"{triangles * 180}度", "对角线条数": str(pairs)}[match[2]]
    match = re.fullmatch(r"(?:怎么求|写出)?(.+?)(?:公式)?？?", question)
    assert match, question
    return FORMULAS[match[1]]


# --- zodiac: by walking along the written-out cycle from 2020

CYCLE = "鼠牛虎兔龙蛇马羊猴鸡狗猪"
BRANCH_OF = dict(zip(CYCLE, "子丑寅卯辰巳午未申酉戌亥", strict=True))
ELEMENT_MEMBERS = {"水": "鼠猪", "木": "虎兔", "火": "蛇马", "金": "猴鸡", "土": "牛龙羊狗"}
SEXAGENARY = []  # the sixty years from 1984, 甲子, on: both cycles move by one each year
_stems, _branches = cycle("甲乙丙丁戊己庚辛壬癸"), cycle("子丑寅卯辰巳午未申酉戌亥")
while len(SEXAGENARY) < 60:
    SEXAGENARY.append(next(_stems) + next(_branches))


def walk(animal: str, steps: int) -> str:
    for _ in range(abs(steps)):
        index = CYCLE.index(animal)
        animal = (CYCLE * 3)[12 + index + (1 if steps > 0 else -1)]
    return animal


def zodiac(question: str) -> str:
    if match := re.fullmatch(r"(\d{4})年的干支？|(\d{4})年用干支怎么记？", question):
        return SEXAGENARY[(int(match[1] or match[2]) - 1984) % 60]
    if match := re.fullmatch(r"(?:哪种生肖对应)?(\d{4})年(?:的生肖|出生的人属什么)?？", question):
        return walk("鼠", int(match[1]) - 2020)
    if match := re.fullmatch(r"从(.)往(后|前)数(\d+)个生肖？", question):
        return walk(match[1], int(match[3]) * (1 if match[2] == "后" else -1))
    if match := re.fullmatch(r"(.)的(后|前)一个生肖？", question):
        return walk(match[1], 1 if match[2] == "后" else -1)
    if match := re.fullmatch(r"生肖里紧跟(.)的是？", question):
        return walk(match[1], 1)
    if match := re.fullmatch(r"生肖里紧挨(.)前面的是？", question):
        return walk(match[1], -1)
    if match := re.fullmatch(r"(?:生肖)?第(\d+)(?:个生肖|位是谁)？", question):
        return walk("鼠", int(match[1]) - 1)
    if match := re.fullmatch(r"生肖(.)排第几？|(.)在生肖中的序号？", question):
        return str(1 + CYCLE.index(match[1] or match[2]))
    if match := re.fullmatch(r"生肖(.)配哪个地支？|(.)对应的地支？", question):
        return BRANCH_OF[match[1] or match[2]]
    if match := re.fullmatch(r"地支(.)配哪个生肖？|(.)时对应的生肖？", question):
        return next(animal for animal, branch in BRANCH_OF.items() if branch == (match[1] or match[2]))
    assert "五行" in question, question
    (animal,) = (character for character in question if character in CYCLE)
    return next(element for element, members in ELEMENT_MEMBERS.items() if animal in members)


# --- physics: what is asked, from the two values given, by unit

PHYSICS = {  # (given, given) -> asked: unit and how
    ("速度", "时间", "路程"): ("m", lambda v, t: v * t),
    ("路程", "时间", "速度"): ("m/s", lambda s, t: s / t),
    ("路程", "速度", "时间"): ("s", lambda s, v: s / v),
    ("密度", "体积", "质量"): ("g", lambda d, v: d * v),
    ("质量", "体积", "密度"): ("g/cm³", lambda m, v: m / v),
    ("质量", "密度", "体积"): ("cm³", lambda m, d: m / d),
    ("压强", "受力面积", "压力"): ("N", lambda p, s: p * s),
    ("压力", "受力面积", "压强"): ("Pa", lambda f, s: f / s),
    ("压力", "压强", "受力面积"): ("m²", lambda f, p: f / p),
    ("质量", "加速度", "合力"): ("N", lambda m, a: m * a),
    ("合力", "加速度", "质量"): ("kg", lambda f, a: f / a),
    ("合力", "质量", "加速度"): ("m/s²", lambda f, m: f / m),
    ("力", "距离", "功"): ("J", lambda f, s: f * s),
    ("功", "距离", "力"): ("N", lambda w, s: w / s),
    ("功", "力", "距离"): ("m", lambda w, f: w / f),
    ("功率", "时间", "功"): ("J", lambda p, t: p * t),
    ("功", "时间", "功率"): ("W", lambda w, t: w / t),
    ("功", "功率", "时间"): ("s", lambda w, p: w / p),
    ("电流", "电阻", "电压"): ("V", lambda i, r: i * r),
    ("电压", "电阻", "电流"): ("A", lambda u, r: u / r),
    ("电压", "电流", "电阻"): ("Ω", lambda u, i: u / i),
    ("电压", "电流", "电功率"): ("W", lambda u, i: u * i),
    ("电功率", "电流", "电压"): ("V", lambda p, i: p / i),
    ("电功率", "电压", "电流"): ("A", lambda p, u: p / u),
    ("质量", "g", "重力"): ("N", lambda m, g: m * g),
    ("重力", "g", "质量"): ("kg", lambda w, g: w / g),
}
CONVERSIONS = {"km=m": "1000", "kg=g": "1000", "m=cm": "100", "h=min": "60", "min=s": "60", "m/s=km/h": "3.6"}
FACTS = {
    "真空中光速": "3×10⁸m/s", "15℃空气中声速": "340m/s", "标准大气压": "101325Pa",
    "标准大气压下水的沸点": "100℃", "标准大气压下冰的熔点": "0℃", "4℃时水的密度": "1g/cm³",
    "绝对零度": "-273.15℃", "力的单位": "牛顿", "功的单位": "焦耳", "功率的单位": "瓦特",
    "压强的单位": "帕斯卡", "电流的单位": "安培", "电压的单位": "伏特", "电阻的单位": "欧姆",
    "电荷量的单位": "库仑", "频率的单位": "赫兹", "热力学温度的单位": "开尔文", "速度公式": "v=s/t",
    "密度公式": "ρ=m/V", "压强公式": "p=F/S", "重力公式": "G=mg", "功的公式": "W=Fs", "功率公式": "P=W/t",
    "欧姆定律公式": "I=U/R", "电功率公式": "P=UI", "焦耳定律公式": "Q=I²Rt", "动能公式": "E=mv²/2",
    "动量公式": "p=mv", "牛顿第二定律公式": "F=ma", "浮力公式": "F=ρgV", "固体变成液体的过程": "熔化",
    "液体变成固体的过程": "凝固", "液体变成气体的过程": "汽化", "气体变成液体的过程": "液化",
    "固体直接变成气体的过程": "升华", "气体直接变成固体的过程": "凝华",
}  # fmt: skip


def physics(question: str) -> str:
    if match := re.fullmatch(r"([\d.]+)([a-z/]+)=\?([a-z/]+)", question):
        return plain(Fraction(match[1]) * Fraction(CONVERSIONS[f"{match[2]}={match[3]}"])) + match[3]
    if match := re.fullmatch(r"([^\d=]+)=?([\d.]+)[^，]+，([^\d=]+)=?([\d.]+)[^，]+，(.+)？", question):
        unit, work_out = PHYSICS[match[1], match[3], match[5]]
        return plain(Fraction(work_out(Fraction(match[2]), Fraction(match[4])))) + unit
    match = re.fullmatch(r"(?:说出|请问)?(.+?)(?:是？|是什么？)?", question)
    assert match, question
    return FACTS[match[1]]
