"""Words and sentences between Chinese and English, each pair one to one."""

from __future__ import annotations

from collections.abc import Iterator

from apt_jax.trainops.data.hlbd.lexicon import load_pairs
from apt_jax.trainops.data.hlbd.records import Question
from apt_jax.trainops.data.hlbd.sampling import Item, Pool

WORD_TO_ENGLISH = ("{}译成英语？", "英语里{}是哪个词？", "把{}翻成英文")
WORD_TO_CHINESE = ("{}译成中文？", "中文里{}是哪个词？", "把{}翻成中文")
SENTENCE_TO_ENGLISH = ("“{}”译成英语？", "英语里“{}”是哪句话？", "把“{}”翻成英文")


def pools() -> list[Pool[Question]]:
    return [
        Pool("words", 480, tuple(_to_english())),
        Pool("word meanings", 300, tuple(_to_chinese())),
        Pool("sentences", 150, tuple(_sentences())),
    ]


def _to_english() -> Iterator[Item[Question]]:
    for chinese, english in load_pairs("words"):
        for wording in WORD_TO_ENGLISH:
            yield Item(Question(wording.format(chinese), english), fact=chinese)


def _to_chinese() -> Iterator[Item[Question]]:
    for chinese, english in load_pairs("words"):
        for wording in WORD_TO_CHINESE:
            yield Item(Question(wording.format(english), chinese), fact=english)


def _sentences() -> Iterator[Item[Question]]:
    for chinese, english in load_pairs("sentences"):
        for wording in SENTENCE_TO_ENGLISH:
            yield Item(Question(wording.format(chinese), english), fact=chinese)
