"""Every generated answer is worked out again by `oracle`, which shares no code with the generator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import apt_jax.trainops.data.hlbd as hlbd
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.hlbd import Hardcore, generate
from tests.trainops.data.hlbd import oracle

SEEDS = (0, 7)
LEXICON = Path(hlbd.__file__).parent / "lexicon"
HAN = r"[一-鿿]+"
ASCII = r"[A-Za-z ]+"


@pytest.fixture(scope="module", params=SEEDS)
def sets(request: pytest.FixtureRequest) -> tuple[Hardcore, Hardcore]:
    train, heldout = generate("hardcore", samples=5000, heldout=500, seed=request.param)
    assert isinstance(train, Hardcore) and isinstance(heldout, Hardcore)
    return train, heldout


@pytest.mark.parametrize("module", ["arithmetic", "geometry", "zodiac", "physics"])
def test_every_answer_is_right(sets, module):
    answer = getattr(oracle, module)
    wrong = [
        (question.input, question.output, right)
        for dataset in sets
        for question in dataset.modules[module]
        if question.output != (right := answer(question.input))
    ]
    assert not wrong


def test_every_translation_is_the_lexicons(sets):
    lines = [
        line
        for name in ("words", "sentences")
        for line in (LEXICON / f"{name}.tsv").read_text("utf-8").split("\n")
    ]
    to_english = dict(line.split("\t") for line in lines if line and not line.startswith("#"))
    to_chinese = {english: chinese for chinese, english in to_english.items()}
    assert len(to_chinese) == len(to_english), "one English form each"
    assert all(
        re.fullmatch(HAN, chinese) and re.fullmatch(ASCII, english) for chinese, english in to_english.items()
    )
    for dataset in sets:
        for question in dataset.modules["reverse_english"]:
            match = re.fullmatch(
                rf"“?({HAN}?|{ASCII}?)”?译成(?:英语|中文)？|(?:英语|中文)里“?({HAN}?|{ASCII}?)”?是哪(?:个词|句话)？"
                rf"|把“?({HAN}?|{ASCII}?)”?翻成(?:英文|中文)",
                question.input,
            )
            assert match, question.input
            word = next(filter(None, match.groups()))
            assert question.output == (to_english | to_chinese)[word]


def test_sizes_and_metadata(sets):
    train, heldout = sets
    assert (len(train), len(heldout)) == (5000, 500)
    counts = {module: len(questions) for module, questions in train.modules.items()}
    assert set(counts) == {"geometry", "arithmetic", "zodiac", "physics", "reverse_english"}
    for module, wanted in dict(
        geometry=860, arithmetic=1900, zodiac=530, physics=825, reverse_english=930
    ).items():
        assert abs(counts[module] - wanted) <= 0.01 * wanted
        assert len(heldout.modules[module]) >= 40
    assert train.metadata["counts"] == counts
    assert train.metadata["total_samples"] == 5000
    assert (train.metadata["split"], heldout.metadata["split"]) == ("train", "heldout")


def test_no_question_twice_and_none_held_out_is_trained_on(sets):
    asked = [
        question.input for dataset in sets for questions in dataset.modules.values() for question in questions
    ]
    assert len(asked) == len(set(asked)) == 5500


def test_held_out_words_are_taught_in_other_wordings(sets):
    train, heldout = sets
    taught = {question.output for question in train.modules["reverse_english"]}
    asked = {question.output for question in heldout.modules["reverse_english"]}
    assert len(asked) > 20
    assert asked <= taught


def test_no_answer_shows_float_artefacts(sets):
    for dataset in sets:
        for example in dataset.examples():
            for number in re.findall(r"\d+\.\d+", example.completion):
                assert len(number.split(".")[1]) <= 2 and not number.endswith("0"), example


def test_base_angles_of_odd_apexes_keep_their_half(sets):
    asked = {question.input: question.output for question in sets[0].modules["geometry"]}
    halves = [answer for question, answer in asked.items() if re.search(r"顶角\d*[13579]度.*底角", question)]
    assert len(halves) > 20
    assert all(re.fullmatch(r"\d+\.5度", answer) for answer in halves)


def test_2020_is_the_year_of_the_rat(sets):
    years = {question.input: question.output for question in sets[0].modules["zodiac"]}
    rats = {int(year) for q, a in years.items() if a == "鼠" for year in re.findall(r"\d{4}", q)}
    assert len(rats) >= 10
    assert all(year % 12 == 2020 % 12 for year in rats)


def test_the_seed_decides_everything():
    assert generate("hardcore", 600, 60, 3) == generate("hardcore", 600, 60, 3)
    assert generate("hardcore", 600, 60, 3)[0].modules != generate("hardcore", 600, 60, 4)[0].modules


def test_held_out_questions_do_not_depend_on_the_number_of_samples():
    small, large = (generate("hardcore", samples, 200, 1)[1] for samples in (300, 4000))
    assert isinstance(small, Hardcore) and isinstance(large, Hardcore)
    assert small.modules == large.modules


@pytest.mark.parametrize("samples", [1, 7, 999, 11000])
def test_exactly_as_many_as_asked_for(samples):
    train, heldout = generate("hardcore", samples)
    assert (len(train), len(heldout)) == (samples, max(1, samples // 10))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("hardcore", 60_000),
            r"hlbd hardcore: module \w+ can give \d+ unique questions .* at most \d+ samples",
        ),
        (("hardcore", 100, 20_000), r"hlbd: \w+ can hold out at most \d+ questions"),
        (("full", 60_000), r"hlbd: full can give \d+ unique training samples"),
        (("hardcor", 100), r"unknown hlbd variant 'hardcor' \(did you mean 'hardcore'\?\)"),
        (("hardcore", 0), r"samples=0.*give samples ≥ 1"),
        (("hardcore", 10, -1), r"heldout=-1"),
    ],
)
def test_what_cannot_be_generated_is_one_line(arguments, line):
    with pytest.raises(DataError, match=line) as caught:
        generate(*arguments)
    assert "\n" not in str(caught.value)


def test_the_size_that_the_error_names_is_possible():
    with pytest.raises(DataError) as caught:
        generate("hardcore", 60_000, 100)
    most = int(re.findall(r"at most (\d+) samples", str(caught.value))[0])
    assert len(generate("hardcore", most, 100)[0]) == most
