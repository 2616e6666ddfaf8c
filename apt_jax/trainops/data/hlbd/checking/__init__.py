"""Checks a data set: wrong, contradicting and repeated answers, and cards that mix languages.

Answers are worked out afresh from the question's text, in many wordings, without the generator's
own arithmetic; so a file from elsewhere can be checked as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from apt_jax.trainops.data.hlbd.checking import arithmetic, cards, geometry, physics, zodiac
from apt_jax.trainops.data.hlbd.checking.answers import Rule
from apt_jax.trainops.data.hlbd.checking.known import known_answer
from apt_jax.trainops.data.hlbd.records import Card, Dataset, Hardcore

RULES: dict[str, Callable[[str], Rule | None]] = {
    "geometry": geometry.rule,
    "arithmetic": arithmetic.rule,
    "zodiac": zodiac.rule,
    "physics": physics.rule,
}


@dataclass(frozen=True)
class Finding:
    """One fault: its kind, the JSON path it is at, and what is wrong there."""

    kind: str  # wrong, contradiction, duplicate, pinyin, language, phrase
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.message}"


@dataclass(frozen=True)
class Check:
    """`checked` of `total` samples could be judged; the rest ask for what no rule or table knows."""

    total: int
    checked: int
    findings: tuple[Finding, ...]


def check(dataset: Dataset) -> Check:
    return _check_questions(dataset) if isinstance(dataset, Hardcore) else _check_cards(dataset.cards)


def _check_questions(dataset: Hardcore) -> Check:
    findings: list[Finding] = []
    first: dict[str, tuple[str, str]] = {}  # question -> path, answer
    checked = 0
    for module, questions in dataset.modules.items():
        for index, question in enumerate(questions):
            path = f"data.{module}[{index}]"
            where, answer = first.setdefault(question.input, (path, question.output))
            if where != path and answer == question.output:
                findings.append(Finding("duplicate", path, f"{question.input} was asked at {where}"))
            elif where != path:
                message = f"{question.input} has {question.output} here, {answer} at {where}"
                findings.append(Finding("contradiction", path, message))
            rule = RULES[module](question.input) if module in RULES else None
            rule = rule or known_answer(question.input)
            checked += rule is not None
            if rule is not None and not rule.accepts(question.output):
                message = f"{question.input} has {question.output}, right is {rule}"
                findings.append(Finding("wrong", path, message))
    return Check(len(dataset), checked, tuple(findings))


def _check_cards(found: tuple[Card, ...]) -> Check:
    findings = [finding for index, card in enumerate(found) for finding in _card_findings(index, card)]
    first: dict[str, int] = {}
    for index, card in enumerate(found):
        if (earlier := first.setdefault(card.concept, index)) != index:
            message = f"concept {card.concept} is also at samples[{earlier}]"
            findings.append(Finding("duplicate", f"samples[{index}].concept", message))
    return Check(len(found), len(found), tuple(findings))


def _card_findings(index: int, card: Card) -> Iterator[Finding]:
    for kind, key, message in cards.faults(card):
        yield Finding(kind, f"samples[{index}].{key}", message)
