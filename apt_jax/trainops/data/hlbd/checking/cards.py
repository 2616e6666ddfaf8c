"""Faults of a concept card that can be seen from its text: wrong scripts, pinyin that does not fit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from apt_jax.trainops.data.hlbd.records import Card

HAN = re.compile(r"[㐀-䶿一-鿿々〇]")
KANA = re.compile(r"[぀-ヿ]")
HANGUL = re.compile(r"[가-힯]")
LONGEST_KANJI_WORD = 4
_SYLLABLE = re.compile(r"[bpmfdtnlgkhjqxrzcsyw]{0,2}h?[aeiouüêv]+(?:ng|n|r)?", re.IGNORECASE)


def faults(card: Card) -> Iterator[tuple[str, str, str]]:
    """Yields (kind, key, message)."""
    yield from _pinyin(card)
    if HAN.search(card.english) or KANA.search(card.english) or HANGUL.search(card.english):
        yield "language", "level_5.英文", f"{card.english} is not all English"
    if KANA.search(card.chinese) or HANGUL.search(card.chinese):
        yield "language", "level_6.中文", f"{card.chinese} is not all Chinese"
    if HANGUL.search(card.japanese) or not _is_japanese(card.japanese):
        yield "language", "level_7.日文", f"{card.japanese} is not all Japanese"
    if HAN.search(card.korean) or KANA.search(card.korean) or not HANGUL.search(card.korean):
        yield "language", "level_8.韩文", f"{card.korean} is not all Korean"


def _is_japanese(text: str) -> bool:
    """Whether a Japanese character set has all its characters, as it has no simplified Chinese ones,
    and whether it has kana, unless it is a single word."""
    if not KANA.search(text) and len(text) > LONGEST_KANJI_WORD:
        return False
    try:
        text.encode("euc_jp")
    except UnicodeEncodeError:
        return False
    return True


def _pinyin(card: Card) -> Iterator[tuple[str, str, str]]:
    """One syllable for each character of the card; joined syllables are allowed if the count fits."""
    characters = len(HAN.findall(card.card))
    if HAN.search(card.pinyin):
        yield "language", "level_4.拼音", f"{card.pinyin} is not all pinyin"
        return
    syllables = card.pinyin.split()
    if len(syllables) != characters:
        message = f"{card.card} has {characters} characters, {card.pinyin} has {len(syllables)} syllables"
        yield "pinyin", "level_4.拼音", message
        return
    for syllable in syllables:
        if not _SYLLABLE.fullmatch(bare(syllable)):
            yield "pinyin", "level_4.拼音", f"{syllable} is no pinyin syllable"


def bare(pinyin: str) -> str:
    """Pinyin without its tone marks; ü stays."""
    decomposed = unicodedata.normalize("NFD", pinyin)
    without = "".join(mark for mark in decomposed if mark not in "\u0300\u0301\u0304\u030c")
    return unicodedata.normalize("NFC", without)
