"""The twelve animals: order, years (2020 is a year of the 鼠), elements, branches and hours."""

from __future__ import annotations

from collections.abc import Iterator

from apt_jax.trainops.data.hlbd.records import Question
from apt_jax.trainops.data.hlbd.sampling import Item, Pool

ANIMALS = "鼠牛虎兔龙蛇马羊猴鸡狗猪"
STEMS = "甲乙丙丁戊己庚辛壬癸"
BRANCHES = "子丑寅卯辰巳午未申酉戌亥"
ELEMENTS = "水土木木土火火土金金土水"  # of the animals, in their order
ANCHOR_YEAR = 2020  # 庚子; a year here is the lunar year that begins in it
YEARS = range(1930, 2110)
MAX_OFFSET = 11


def animal_of(year: int) -> str:
    return ANIMALS[(year - ANCHOR_YEAR) % 12]


def stem_branch_of(year: int) -> str:
    """The sexagenary name; 2020 is 庚子."""
    offset = year - ANCHOR_YEAR
    return STEMS[(offset + STEMS.index("庚")) % 10] + BRANCHES[offset % 12]


def pools() -> list[Pool[Question]]:
    return [
        Pool("years", 280, tuple(_years())),
        Pool("stems and branches", 90, tuple(_stem_branches())),
        Pool("neighbours", 40, tuple(_neighbours())),
        Pool("offsets", 120, tuple(_offsets())),
        Pool("places", 60, tuple(_places())),
        Pool("elements", 50, tuple(_elements())),
    ]


def _years() -> Iterator[Item[Question]]:
    for year in YEARS:
        for wording in ("{}年的生肖？", "{}年出生的人属什么？", "哪种生肖对应{}年？"):
            yield Item(Question(wording.format(year), animal_of(year)), fact=str(year))


def _stem_branches() -> Iterator[Item[Question]]:
    for year in YEARS:
        for wording in ("{}年的干支？", "{}年用干支怎么记？"):
            yield Item(Question(wording.format(year), stem_branch_of(year)), fact=str(year))


def _neighbours() -> Iterator[Item[Question]]:
    for place, animal in enumerate(ANIMALS):
        after, before = ANIMALS[(place + 1) % 12], ANIMALS[place - 1]
        for wording in ("{}的后一个生肖？", "生肖里紧跟{}的是？"):
            yield Item(Question(wording.format(animal), after), fact=f"after {animal}")
        for wording in ("{}的前一个生肖？", "生肖里紧挨{}前面的是？"):
            yield Item(Question(wording.format(animal), before), fact=f"before {animal}")


def _offsets() -> Iterator[Item[Question]]:
    for place, animal in enumerate(ANIMALS):
        for steps in range(2, MAX_OFFSET + 1):
            yield Item(Question(f"从{animal}往后数{steps}个生肖？", ANIMALS[(place + steps) % 12]))
            yield Item(Question(f"从{animal}往前数{steps}个生肖？", ANIMALS[(place - steps) % 12]))


def _places() -> Iterator[Item[Question]]:
    for place, (animal, branch) in enumerate(zip(ANIMALS, BRANCHES, strict=True), start=1):
        for wording in ("第{}个生肖？", "生肖第{}位是谁？"):
            yield Item(Question(wording.format(place), animal), fact=f"at {place}")
        for wording in ("生肖{}排第几？", "{}在生肖中的序号？"):
            yield Item(Question(wording.format(animal), str(place)), fact=f"place of {animal}")
        for wording in ("生肖{}配哪个地支？", "{}对应的地支？"):
            yield Item(Question(wording.format(animal), branch), fact=f"branch of {animal}")
        for wording in ("地支{}配哪个生肖？", "{}时对应的生肖？"):
            yield Item(Question(wording.format(branch), animal), fact=f"animal of {branch}")


def _elements() -> Iterator[Item[Question]]:
    for animal, element in zip(ANIMALS, ELEMENTS, strict=True):
        for wording in (
            "生肖{}的五行？",
            "{}在五行里属什么？",
            "五行配生肖，{}配什么？",
            "{}这个生肖五行属？",
        ):
            yield Item(Question(wording.format(animal), element), fact=animal)
