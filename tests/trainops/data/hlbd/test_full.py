"""Concept cards: each level in its own script, and all levels made of the same parts."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

import apt_jax.trainops.data.hlbd as hlbd
from apt_jax.trainops.data.hlbd import Card, Full, generate

LEXICON = Path(hlbd.__file__).parent / "lexicon"
TABLES = ("verbs", "places", "times", "adverbs", "frequencies", "companions", "subjects")
FORMULA = re.compile(r"S = (.+?) \((.+)\)")
TONES = "\u0300\u0301\u0304\u030c"


def table(name: str) -> list[list[str]]:
    lines = (LEXICON / f"{name}.tsv").read_text("utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def cards() -> tuple[Card, ...]:
    train, heldout = generate("full", samples=5000, heldout=500, seed=1)
    assert isinstance(train, Full) and isinstance(heldout, Full)
    assert (len(train), len(heldout)) == (5000, 500)
    return train.cards + heldout.cards


def words_of(card: Card) -> dict[str, str]:
    match = FORMULA.fullmatch(card.formula)
    assert match, card.formula
    words = dict(part.split(": ") for part in match[2].split(", "))
    assert match[1] == " + ".join(words) == card.structure
    return words


def test_every_concept_is_there_once_and_none_is_in_both_sets(cards):
    assert len({card.concept for card in cards}) == len(cards) == 5500
    assert len({card.prompt() for card in cards}) == 5500


def test_all_documented_structures_occur(cards):
    found = {card.structure for card in cards}
    assert {f"NP + {kind}VP" for kind in ("", "Time + ", "Place + ", "Adv + ", "Neg + ")} <= found
    assert len(found) >= 10


def test_the_chinese_levels_are_made_of_the_formulas_words(cards):
    for card in cards:
        words = words_of(card)
        subject, rest = words["NP"], "".join(word for label, word in words.items() if label != "NP")
        assert card.chinese == f"{subject}{rest}。"
        assert card.card == card.concept in (rest, subject + rest)
        if card.concept == subject + rest:
            assert card.phrase == f"{rest}的{subject}"
        elif "Neg" in words:
            assert card.phrase == rest.replace("不", "别", 1)
        else:
            assert card.phrase in (f"{rest}吧", f"{rest}的人")


def test_one_pinyin_syllable_with_at_most_one_tone_for_each_character(cards):
    for card in cards:
        syllables = card.pinyin.split(" ")
        assert len(syllables) == len(card.card), card
        for syllable in syllables:
            plain = unicodedata.normalize("NFD", syllable)
            assert sum(plain.count(tone) for tone in TONES) <= 1
            assert re.fullmatch(r"[a-zü]{1,6}", unicodedata.normalize("NFC", re.sub(f"[{TONES}]", "", plain)))


def test_a_characters_pinyin_is_the_same_in_the_same_word(cards):
    """The reading of every verb phrase is that of its table, wherever it occurs."""
    readings = {row[0]: row[1] for row in table("verbs")}
    for card in cards:
        assert card.pinyin.endswith(readings[words_of(card)["VP"]])


def test_each_language_keeps_to_its_script(cards):
    for card in cards:
        assert re.fullmatch(r"[A-Z][A-Za-z ]+\.", card.english), card.english
        assert re.fullmatch(r"[\u4e00-\u9fff]+。", card.chinese), card.chinese
        assert re.fullmatch(r"[\u3040-\u30ff\u4e00-\u9fff々ー]+(?:ます|ません)。", card.japanese), (
            card.japanese
        )
        assert re.fullmatch(r"[\uac00-\ud7a3 ]+요\.", card.korean), card.korean
        assert re.fullmatch(r"[^A-Za-z\u3000-\u9fff\uac00-\ud7a3]+", card.emoji), card.emoji


def test_no_chinese_is_left_in_the_japanese(cards):
    """Simplified Chinese forms are not in the Japanese character set, nor Japanese ones in the Chinese."""
    for card in cards:
        card.japanese.encode("euc_jp")
        for chinese in (card.concept, card.phrase, card.chinese):
            chinese.encode("gb2312")


def test_negation_is_in_every_language_or_in_none(cards):
    negated = 0
    for card in cards:
        signs = [
            "Neg" in words_of(card),
            "不" in card.concept,
            " not " in card.english,
            "ません" in card.japanese,
        ]
        signs += ["않아요" in card.korean, "🚫" in card.emoji]
        assert len(set(signs)) == 1, card
        negated += signs[0]
    assert negated > 100


def test_english_verbs_agree_with_their_subject(cards):
    third = {row[1]: row[6] == "yes" for row in table("subjects")}
    forms = {row[0]: (row[3], row[4]) for row in table("verbs")}
    possessive = {row[1]: row[5] for row in table("subjects")}
    for card in cards:
        words = words_of(card)
        base, with_s = (form.replace("{their}", possessive[words["NP"]]) for form in forms[words["VP"]])
        if "Neg" in words:
            assert f"{'does' if third[words['NP']] else 'do'} not {base}" in card.english
        else:
            assert f" {with_s if third[words['NP']] else base}" in card.english


def test_every_modifier_is_said_in_every_language(cards):
    rows = {row[1]: row for name in TABLES[1:] for row in table(name)}
    for card in cards:
        words = words_of(card)
        for label in words.keys() - {"VP", "Neg"}:
            row = rows[words[label]]
            assert row[4] in card.english and row[-2] in card.japanese and row[-1] in card.korean, card


@pytest.mark.parametrize("name", TABLES)
def test_lexicon_entries_are_told_apart_by_every_column_that_names_them(name):
    rows = table(name)
    first = 0 if name == "verbs" else 1
    columns = [first, *range(first + 2, first + 4)] + ([5, 6, 7] if name == "verbs" else [-2, -1])
    for column in columns:
        values = [row[column] for row in rows]
        assert len(set(values)) == len(values), sorted(value for value in values if values.count(value) > 1)


def test_lexicon_keys_are_known():
    known = {name: {row[0] for row in table(name)} for name in ("places", "adverbs", "times")}
    for row in table("verbs"):
        for cell, name in zip(row[8:], known, strict=True):
            assert set(filter(None, cell.split(","))) <= known[name], row[0]


def test_third_person_forms_follow_the_rule():
    for row in table("verbs"):
        verb, _, rest = row[3].partition(" ")
        if verb in ("have", "do", "go"):
            expected = {"have": "has", "do": "does", "go": "goes"}[verb]
        elif verb.endswith(("sh", "ch", "ss", "x")):
            expected = verb + "es"
        elif verb.endswith("y") and verb[-2] not in "aeiou":
            expected = verb[:-1] + "ies"
        else:
            expected = verb + "s"
        assert row[4] == f"{expected} {rest}".strip()


def test_the_subject_of_a_concept_does_not_depend_on_what_else_is_drawn():
    by_size = [{card.concept: card for card in generate("full", n, 10, 5)[0].cards} for n in (300, 3000)]
    shared = by_size[0].keys() & by_size[1].keys()
    assert len(shared) > 100
    assert all(by_size[0][concept] == by_size[1][concept] for concept in shared)
