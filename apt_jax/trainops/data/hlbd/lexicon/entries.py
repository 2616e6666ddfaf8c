"""The typed entries of the lexicon that concept cards are composed from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from apt_jax.trainops.data.hlbd.lexicon import rows


@dataclass(frozen=True)
class Modifier:
    """A place, time, manner, frequency or companion: a phrase that stands as it is in each language."""

    key: str
    chinese: str
    pinyin: str
    emoji: str
    english: str
    japanese: str
    korean: str


@dataclass(frozen=True)
class Subject:
    """Who does it. `japanese` and `korean` carry their topic particle."""

    kind: str  # pronoun or noun
    chinese: str
    pinyin: str
    emoji: str
    english: str
    possessive: str
    third_person: bool  # English verbs take their -s
    japanese: str
    korean: str


@dataclass(frozen=True)
class Verb:
    """A verb phrase with its forms, and the modifiers it makes sense with (keys of their tables)."""

    chinese: str
    pinyin: str
    emoji: str
    english: str  # base form; {their} stands for the subject's possessive
    english_third: str
    japanese: str  # takes ます, ません
    korean: str  # polite, affirmative
    korean_stem: str  # takes 지 않아요
    places: frozenset[str]
    manners: frozenset[str]
    not_at: frozenset[str]  # times


@dataclass(frozen=True)
class Lexicon:
    subjects: tuple[Subject, ...]
    verbs: tuple[Verb, ...]
    places: tuple[Modifier, ...]
    times: tuple[Modifier, ...]
    manners: tuple[Modifier, ...]
    frequencies: tuple[Modifier, ...]
    companions: tuple[Modifier, ...]


@lru_cache
def lexicon() -> Lexicon:
    return Lexicon(
        subjects=tuple(
            Subject(kind, chinese, pinyin, emoji, english, possessive, third == "yes", japanese, korean)
            for kind, chinese, pinyin, emoji, english, possessive, third, japanese, korean in rows("subjects")
        ),
        verbs=tuple(_verb(row) for row in rows("verbs")),
        places=_modifiers("places"),
        times=_modifiers("times"),
        manners=_modifiers("adverbs"),
        frequencies=_modifiers("frequencies"),
        companions=_modifiers("companions"),
    )


def _verb(row: list[str]) -> Verb:
    places, manners, not_at = (frozenset(filter(None, cell.split(","))) for cell in row[8:])
    return Verb(*row[:8], places=places, manners=manners, not_at=not_at)


def _modifiers(table: str) -> tuple[Modifier, ...]:
    return tuple(Modifier(*row) for row in rows(table))
