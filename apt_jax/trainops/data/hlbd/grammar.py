"""A small grammar that says one clause in Chinese, English, Japanese and Korean.

A clause is a verb phrase with at most one modifier of each kind, in the simple present. Only what
composes safely is composed: modifiers are whole phrases with their particles, verbs bring their
polite and negative forms, and a verb names the places, manners and times it makes sense with.
"""

from __future__ import annotations

from dataclasses import dataclass

from apt_jax.trainops.data.hlbd.lexicon.entries import Modifier, Subject, Verb
from apt_jax.trainops.data.hlbd.records import Card

LABELS = {"time": "Time", "frequency": "Freq", "companion": "With", "place": "Place", "manner": "Adv"}
ASIAN_ORDER = ("time", "frequency", "companion", "place", "manner")  # all before the verb
ENGLISH_ORDER = ("manner", "place", "companion", "time")  # behind it; frequency goes before it
NOT, NOT_IN_REQUEST, NOT_PINYIN, NOT_EMOJI = "不", "别", "bù", "🚫"  # pinyin as in a dictionary, no sandhi


@dataclass(frozen=True)
class Clause:
    """What is said. A negated clause has neither manner nor frequency: the scope would be unclear."""

    verb: Verb
    time: Modifier | None = None
    frequency: Modifier | None = None
    companion: Modifier | None = None
    place: Modifier | None = None
    manner: Modifier | None = None
    negated: bool = False
    subject: Subject | None = None  # when it is part of the concept

    def modifiers(self, order: tuple[str, ...] = ASIAN_ORDER) -> list[Modifier]:
        return [modifier for kind in order if (modifier := getattr(self, kind)) is not None]

    @property
    def concept(self) -> str:
        """The Chinese predicate, with its subject where that belongs to the concept."""
        return f"{self.subject.chinese if self.subject else ''}{predicate(self)}"


def predicate(clause: Clause, negation: str = NOT) -> str:
    before = "".join(modifier.chinese for modifier in clause.modifiers())
    return f"{before}{negation if clause.negated else ''}{clause.verb.chinese}"


def make_card(clause: Clause, speaker: Subject) -> Card:
    """All eight levels. `speaker` is the sentence's subject when the concept has none."""
    subject = clause.subject or speaker
    shown = [*([clause.subject] if clause.subject else []), *clause.modifiers()]
    return Card(
        concept=clause.concept,
        card=clause.concept,
        emoji="".join([*(part.emoji for part in shown), NOT_EMOJI * clause.negated, clause.verb.emoji]),
        phrase=_phrase(clause),
        formula=_formula(clause, subject),
        pinyin=" ".join(
            [*(part.pinyin for part in shown), *[NOT_PINYIN] * clause.negated, clause.verb.pinyin]
        ),
        english=_english(clause, subject),
        chinese=f"{subject.chinese}{predicate(clause)}。",
        japanese=_japanese(clause, subject),
        korean=_korean(clause, subject),
    )


def _phrase(clause: Clause) -> str:
    """The concept in another form: who does it, or a suggestion, or a request not to do it."""
    if clause.subject:
        return f"{predicate(clause)}的{clause.subject.chinese}"
    if clause.negated:
        return predicate(clause, NOT_IN_REQUEST)
    return f"{predicate(clause)}的人" if clause.frequency else f"{predicate(clause)}吧"


def _formula(clause: Clause, subject: Subject) -> str:
    """The sentence's parts in Chinese order: "S = NP + Time + VP (NP: 我, Time: 早上, VP: 喝茶)"."""
    words = {"NP": subject.chinese}
    words |= {LABELS[kind]: part.chinese for kind in ASIAN_ORDER if (part := getattr(clause, kind))}
    words |= {"Neg": NOT} if clause.negated else {}
    words["VP"] = clause.verb.chinese
    return f"S = {' + '.join(words)} ({', '.join(f'{label}: {word}' for label, word in words.items())})"


def _english(clause: Clause, subject: Subject) -> str:
    if clause.negated:
        verb = f"{'does' if subject.third_person else 'do'} not {clause.verb.english}"
    else:
        verb = clause.verb.english_third if subject.third_person else clause.verb.english
    often = [clause.frequency.english] if clause.frequency else []
    after = [modifier.english for modifier in clause.modifiers(ENGLISH_ORDER)]
    return " ".join([subject.english, *often, verb.replace("{their}", subject.possessive), *after]) + "."


def _japanese(clause: Clause, subject: Subject) -> str:
    before = "".join(modifier.japanese for modifier in clause.modifiers())
    return f"{subject.japanese}{before}{clause.verb.japanese}{'ません' if clause.negated else 'ます'}。"


def _korean(clause: Clause, subject: Subject) -> str:
    verb = f"{clause.verb.korean_stem}지 않아요" if clause.negated else clause.verb.korean
    return " ".join([subject.korean, *(modifier.korean for modifier in clause.modifiers()), verb]) + "."
