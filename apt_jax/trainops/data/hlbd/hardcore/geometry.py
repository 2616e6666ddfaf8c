"""Plane and solid geometry: perimeters, areas, angles, polygons, formulas. Every answer is exact."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from apt_jax.trainops.data.hlbd.exact import decimal
from apt_jax.trainops.data.hlbd.records import Question
from apt_jax.trainops.data.hlbd.sampling import Item, Pool

SIDES = range(1, 51)
RECTANGLE_SIDES = range(2, 31)
ANGLES = range(20, 121, 5)
POLYGONS = dict(zip("三四五六七八九十", range(3, 11), strict=True)) | {"十一": 11, "十二": 12}

FORMULAS = {
    "正方形的周长": "C=4a",
    "正方形的面积": "S=a²",
    "长方形的周长": "C=2(a+b)",
    "长方形的面积": "S=ab",
    "三角形的面积": "S=ah÷2",
    "平行四边形的面积": "S=ah",
    "梯形的面积": "S=(a+b)h÷2",
    "圆的周长": "C=2πr",
    "圆的面积": "S=πr²",
    "正方体的体积": "V=a³",
    "长方体的体积": "V=abh",
    "圆柱的体积": "V=πr²h",
    "圆锥的体积": "V=πr²h÷3",
    "球的体积": "V=4πr³÷3",
    "球的表面积": "S=4πr²",
}


def pools() -> list[Pool[Question]]:
    return [
        Pool("squares", 140, tuple(_squares())),
        Pool("rectangles", 220, tuple(_rectangles())),
        Pool("triangle areas", 70, tuple(_triangle_areas())),
        Pool("triangle angles", 90, tuple(_triangle_angles())),
        Pool("isosceles triangles", 120, tuple(_isosceles())),
        Pool("circles", 110, tuple(_circles())),
        Pool("solids", 40, tuple(_cubes())),
        Pool("polygons", 40, tuple(_polygons())),
        Pool("formulas", 30, tuple(_formulas())),
    ]


def _two_wordings(shape: str, given: str, quantity: str, answer: str) -> Iterator[Item[Question]]:
    yield Item(Question(f"{shape}{given}，{quantity}？", answer))
    yield Item(Question(f"求{given}的{shape}的{quantity}", answer))


def _squares() -> Iterator[Item[Question]]:
    for a in SIDES:
        yield from _two_wordings("正方形", f"边长{a}", "周长", str(4 * a))
        yield from _two_wordings("正方形", f"边长{a}", "面积", str(a * a))


def _rectangles() -> Iterator[Item[Question]]:
    for a in RECTANGLE_SIDES:
        for b in range(1, a):
            yield from _two_wordings("长方形", f"长{a}宽{b}", "周长", str(2 * (a + b)))
            yield from _two_wordings("长方形", f"长{a}宽{b}", "面积", str(a * b))


def _triangle_areas() -> Iterator[Item[Question]]:
    for base in range(1, 21):
        for height in range(1, 21):
            yield from _two_wordings(
                "三角形", f"底{base}高{height}", "面积", decimal(Fraction(base * height, 2))
            )


def _triangle_angles() -> Iterator[Item[Question]]:
    for one in ANGLES:
        for other in ANGLES:
            if one + other < 180:
                yield from _two_wordings(
                    "三角形", f"两角{one}度和{other}度", "第三角", f"{180 - one - other}度"
                )


def _isosceles() -> Iterator[Item[Question]]:
    for apex in range(1, 180):
        yield from _two_wordings(
            "等腰三角形", f"顶角{apex}度", "底角", f"{decimal(Fraction(180 - apex, 2))}度"
        )
    for base in range(1, 90):
        yield from _two_wordings("等腰三角形", f"底角{base}度", "顶角", f"{180 - 2 * base}度")


def _circles() -> Iterator[Item[Question]]:
    """Areas and circumferences stay multiples of π."""
    for n in range(1, 41):
        yield from _two_wordings("圆", f"半径{n}", "直径", str(2 * n))
        yield from _two_wordings("圆", f"直径{n}", "半径", decimal(Fraction(n, 2)))
        yield from _two_wordings("圆", f"半径{n}", "周长", f"{2 * n}π")
        yield from _two_wordings("圆", f"半径{n}", "面积", "π" if n == 1 else f"{n * n}π")


def _cubes() -> Iterator[Item[Question]]:
    for a in range(1, 21):
        yield from _two_wordings("正方体", f"棱长{a}", "体积", str(a**3))
        yield from _two_wordings("正方体", f"棱长{a}", "表面积", str(6 * a * a))


def _polygons() -> Iterator[Item[Question]]:
    for name, sides in POLYGONS.items():
        shape = f"{name}边形" if sides != 3 else "三角形"
        facts = {
            "边数": str(sides),
            "内角和": f"{180 * (sides - 2)}度",
            "对角线条数": str(sides * (sides - 3) // 2),
        }
        for quantity, answer in facts.items():
            for wording in ("{}的{}？", "求{}的{}"):
                yield Item(Question(wording.format(shape, quantity), answer), fact=f"{shape} {quantity}")


def _formulas() -> Iterator[Item[Question]]:
    for quantity, formula in FORMULAS.items():
        for wording in ("{}公式？", "怎么求{}？", "写出{}公式"):
            yield Item(Question(wording.format(quantity), formula), fact=quantity)
