"""School physics in SI and everyday units; only numbers are asked for whose answer is exact."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from apt_jax.trainops.data.hlbd.exact import decimal, is_short
from apt_jax.trainops.data.hlbd.records import Question
from apt_jax.trainops.data.hlbd.sampling import Item, Pool

# Each law is whole = factor × factor: (share, whole, factor, factor) with each quantity's unit, and
# the values of the two factors that questions are made of.
Quantity = tuple[str, str]
LAWS: dict[str, tuple[int, Quantity, Quantity, Quantity, range, range]] = {
    "motion": (200, ("路程", "m"), ("速度", "m/s"), ("时间", "s"), range(1, 31), range(2, 16)),
    "density": (120, ("质量", "g"), ("密度", "g/cm³"), ("体积", "cm³"), range(1, 16), range(2, 31)),
    "pressure": (100, ("压力", "N"), ("压强", "Pa"), ("受力面积", "m²"), range(1, 31), range(2, 16)),
    "newton": (60, ("合力", "N"), ("质量", "kg"), ("加速度", "m/s²"), range(2, 16), range(1, 16)),
    "work": (60, ("功", "J"), ("力", "N"), ("距离", "m"), range(2, 21), range(2, 16)),
    "power": (60, ("功", "J"), ("功率", "W"), ("时间", "s"), range(2, 21), range(2, 16)),
    "ohm": (60, ("电压", "V"), ("电流", "A"), ("电阻", "Ω"), range(1, 11), range(2, 21)),
    "electric power": (45, ("电功率", "W"), ("电压", "V"), ("电流", "A"), range(2, 25), range(1, 11)),
}

CONVERSIONS = {  # from, to, factor
    ("km", "m"): Fraction(1000),
    ("kg", "g"): Fraction(1000),
    ("m", "cm"): Fraction(100),
    ("h", "min"): Fraction(60),
    ("min", "s"): Fraction(60),
    ("m/s", "km/h"): Fraction(36, 10),
}

FACTS = {
    "真空中光速": "3×10⁸m/s",
    "15℃空气中声速": "340m/s",
    "标准大气压": "101325Pa",
    "标准大气压下水的沸点": "100℃",
    "标准大气压下冰的熔点": "0℃",
    "4℃时水的密度": "1g/cm³",
    "绝对零度": "-273.15℃",
    "力的单位": "牛顿",
    "功的单位": "焦耳",
    "功率的单位": "瓦特",
    "压强的单位": "帕斯卡",
    "电流的单位": "安培",
    "电压的单位": "伏特",
    "电阻的单位": "欧姆",
    "电荷量的单位": "库仑",
    "频率的单位": "赫兹",
    "热力学温度的单位": "开尔文",
    "速度公式": "v=s/t",
    "密度公式": "ρ=m/V",
    "压强公式": "p=F/S",
    "重力公式": "G=mg",
    "功的公式": "W=Fs",
    "功率公式": "P=W/t",
    "欧姆定律公式": "I=U/R",
    "电功率公式": "P=UI",
    "焦耳定律公式": "Q=I²Rt",
    "动能公式": "E=mv²/2",
    "动量公式": "p=mv",
    "牛顿第二定律公式": "F=ma",
    "浮力公式": "F=ρgV",
    "固体变成液体的过程": "熔化",
    "液体变成固体的过程": "凝固",
    "液体变成气体的过程": "汽化",
    "气体变成液体的过程": "液化",
    "固体直接变成气体的过程": "升华",
    "气体直接变成固体的过程": "凝华",
}


def pools() -> list[Pool[Question]]:
    return [
        *(Pool(name, law[0], tuple(_law(*law[1:]))) for name, law in LAWS.items()),
        Pool("weight", 30, tuple(_weights())),
        Pool("conversions", 60, tuple(_conversions())),
        Pool("facts", 80, tuple(_facts())),
    ]


def _law(
    whole: Quantity, one: Quantity, other: Quantity, one_values: range, other_values: range
) -> Iterator[Item[Question]]:
    """Asks for the product and for each factor; the product is made of the factors, so all are exact."""
    for a in one_values:
        for b in other_values:
            product = a * b
            yield _ask((one, a), (other, b), (whole, product))
            yield _ask((whole, product), (other, b), (one, a))
            yield _ask((whole, product), (one, a), (other, b))
            half = Fraction(2 * a + 1, 2)  # quotients such as 7.5 as well
            if (half * b).denominator == 1:
                yield _ask((whole, int(half * b)), (other, b), (one, half))


def _ask(*values: tuple[Quantity, int | Fraction]) -> Item[Question]:
    """The last quantity is asked for, the others are given."""
    *given, ((name, unit), value) = values
    stated = "，".join(f"{label}{decimal(number)}{sign}" for (label, sign), number in given)
    return Item(Question(f"{stated}，{name}？", f"{decimal(value)}{unit}"))


def _weights() -> Iterator[Item[Question]]:
    for mass in range(1, 101):
        yield Item(Question(f"质量{mass}kg，g=10N/kg，重力？", f"{10 * mass}N"))
        yield Item(Question(f"重力{10 * mass}N，g=10N/kg，质量？", f"{mass}kg"))


def _conversions() -> Iterator[Item[Question]]:
    for (unit, smaller), factor in CONVERSIONS.items():
        for tenths in range(5, 255, 5):
            value = Fraction(tenths, 10)
            if is_short(value * factor):
                yield Item(
                    Question(f"{decimal(value)}{unit}=?{smaller}", f"{decimal(value * factor)}{smaller}")
                )


def _facts() -> Iterator[Item[Question]]:
    for name, answer in FACTS.items():
        for wording in ("{}是？", "说出{}", "请问{}是什么？"):
            yield Item(Question(wording.format(name), answer), fact=name)
