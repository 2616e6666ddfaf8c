from __future__ import annotations

from dataclasses import replace

import pytest

from apt_jax.trainops.data.hlbd import Card, Full, Hardcore, Question, generate
from apt_jax.trainops.data.hlbd.checking import check


def questions(module: str, *pairs: tuple[str, str]) -> Hardcore:
    return Hardcore({}, {module: tuple(Question(*pair) for pair in pairs)})


@pytest.mark.parametrize("variant", ["hardcore", "full"])
def test_generated_sets_are_checked_in_full_and_faultless(variant):
    for dataset in generate(variant, 5000, 500, seed=9):
        result = check(dataset)
        assert result.findings == ()
        assert result.checked == result.total == len(dataset)


@pytest.mark.parametrize(
    ("module", "question", "right", "wrong"),
    [
        ("geometry", "等腰三角形顶角是59度，底角是多少度？", "60.5度", "60度"),
        ("geometry", "等腰三角形的顶角为51度，求底角", "64.5度", "64度"),
        ("geometry", "三角形的两个角是67°和40°，求第三个角", "73度", "72度"),
        ("geometry", "一个三角形有一个25度的角，另一个128度的角，第三个角是多少度？", "27度", "28度"),
        ("geometry", "长5、宽8的长方形，求面积", "40", "26"),
        ("geometry", "边长为40的正方形周长是多少？", "160", "1600"),
        ("geometry", "圆的半径是4，直径是？", "8", "2"),
        ("geometry", "七边形的内角和是多少？", "900度", "1080度"),
        ("geometry", "正五边形有几条对称轴？", "5", "10"),
        ("geometry", "三角形有多少条边？", "3", "4"),
        ("geometry", "求半径3的圆的面积", "9π", "6π"),
        ("arithmetic", "23 + 15 - 7 × 2 = ?", "24", "62"),
        ("arithmetic", "72 ÷ 4 = ?", "18", "17"),
        ("arithmetic", "5-9=?", "-4", "4"),
        ("zodiac", "2042年属什么？", "狗年", "猪年"),
        ("zodiac", "鼠后面第2个是什么？", "虎", "牛"),
        ("zodiac", "羊之前是什么？", "马", "猴"),
        ("zodiac", "十二生肖排第7的是？", "马", "蛇"),
        ("zodiac", "生肖猪属五行中的什么？", "水", "土"),
        ("zodiac", "1999年的干支？", "己卯", "庚辰"),
        ("physics", "物体运动279米用了13秒，速度是多少m/s？", "21.5 m/s", "21.4 m/s"),
        ("physics", "质量301g，体积47cm³的物体，密度是多少g/cm³？", "6.40 g/cm³", "6.41 g/cm³"),
        ("physics", "压力77N，受力面积5m²，压强是多少Pa？", "15.4 Pa", "15.4 N"),
        ("physics", "电压12V，电流2A，电阻？", "6Ω", "24Ω"),
        ("physics", "36m/s=?km/h", "129.6km/h", "10km/h"),
        ("physics", "压强公式是？", "p=F/S", "p=FS"),
        ("reverse_english", "猫译成英语？", "Cat", "dog"),
    ],
)
def test_right_answers_pass_and_wrong_ones_are_found(module, question, right, wrong):
    passed, failed = check(questions(module, (question, right))), check(questions(module, (question, wrong)))
    assert (passed.checked, passed.findings) == (1, ())
    (finding,) = failed.findings
    assert (finding.kind, finding.path) == ("wrong", f"data.{module}[0]")
    assert wrong in finding.message


def test_ties_may_be_rounded_either_way_but_whole_numbers_are_not_rounded():
    question = "物体运动49米用了4秒，速度是多少m/s？"  # 12.25
    answers = {"12.25 m/s": 0, "12.2 m/s": 0, "12.3 m/s": 0, "12 m/s": 1, "12.4 m/s": 1}
    assert {a: len(check(questions("physics", (question, a))).findings) for a in answers} == answers


def test_repeated_and_contradicting_questions():
    result = check(questions("other", ("q", "1"), ("p", "2"), ("q", "1"), ("q", "3")))
    assert [(finding.kind, finding.path) for finding in result.findings] == [
        ("duplicate", "data.other[2]"),
        ("contradiction", "data.other[3]"),
    ]
    assert result.checked == 0, "nobody knows the answer"


@pytest.mark.parametrize(
    "question", ["3 ÷ 0 = ?", "圆是什么？", "正方形有什么特点？", "x=?", "牛顿第一定律是什么？"]
)
@pytest.mark.parametrize("module", ["arithmetic", "geometry", "physics"])
def test_what_cannot_be_worked_out_is_not_judged(module, question):
    result = check(questions(module, (question, "?")))
    assert (result.checked, result.findings) == (0, ())


@pytest.fixture(scope="module")
def card() -> Card:
    dataset, _ = generate("full", 1, 0)
    assert isinstance(dataset, Full)
    return dataset.cards[0]


@pytest.mark.parametrize(
    ("field", "text", "kind"),
    [
        ("english", "I 喝茶.", "language"),
        ("korean", "저는 喝茶.", "language"),
        ("korean", "hello", "language"),
        ("japanese", "私は车に乗ります。", "language"),
        ("japanese", "私は車를乗ります。", "language"),
        ("japanese", "我早上在公园里喝茶。", "language"),
        ("chinese", "我はお茶。", "language"),
        ("pinyin", "hē", "pinyin"),
        ("pinyin", "喝 chá", "language"),
    ],
)
def test_faults_of_a_card_are_found(card, field, text, kind):
    result = check(Full({}, (card, replace(card, concept="另", **{field: text}))))
    assert {finding.kind for finding in result.findings} == {kind}
    assert all(finding.path.startswith("samples[1].level_") for finding in result.findings)


def test_syllables_are_looked_at(card):
    strange = " ".join(["xq"] * len(card.card))
    (finding,) = {f.kind: f for f in check(Full({}, (replace(card, pinyin=strange),))).findings}.values()
    assert "no pinyin syllable" in finding.message


def test_repeated_concepts(card):
    (finding,) = check(Full({}, (card, card))).findings
    assert (finding.kind, finding.path) == ("duplicate", "samples[1].concept")
