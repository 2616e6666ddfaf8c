"""Verifies a model on HLBD: exact answers by module, on questions it was trained on and on others.

Exit codes and tables are the command's business; this file is pure, given a function that answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from apt_jax.trainops.data.hlbd.records import Example

Answerer = Callable[[list[str]], list[str]]

COLLAPSE_AT = 5  # times one wrong answer is given within a module before it counts as a collapse
STATUS = ((0.8, "ok"), (0.5, "warn"), (0.0, "fail"))  # of a module, from its accuracy
GRADES = ((0.9, "excellent"), (0.7, "good"), (0.5, "fair"), (0.0, "poor"))  # overall


@dataclass(frozen=True)
class Failure:
    input: str
    expected: str
    answer: str

    def to_json(self) -> dict[str, str]:
        return {"input": self.input, "expected": self.expected, "generated": self.answer}


@dataclass(frozen=True)
class ModuleScore:
    """One module's result. `collapsed_to` lists (wrong answer, times given), the most frequent first."""

    module: str
    total: int
    failures: tuple[Failure, ...]
    collapsed_to: tuple[tuple[str, int], ...]

    @property
    def correct(self) -> int:
        return self.total - len(self.failures)

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def status(self) -> str:
        return _level(self.accuracy, STATUS)

    def to_json(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "total": self.total,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "status": self.status,
            "mode_collapse": [{"answer": answer, "times": times} for answer, times in self.collapsed_to],
            "failures": [failure.to_json() for failure in self.failures],
        }


@dataclass(frozen=True)
class Score:
    """The result on one set of questions, by module in order of appearance."""

    modules: tuple[ModuleScore, ...]

    @property
    def total(self) -> int:
        return sum(module.total for module in self.modules)

    @property
    def correct(self) -> int:
        return sum(module.correct for module in self.modules)

    @property
    def accuracy(self) -> float:
        """Correct answers over all answers, whatever their module; 0 for no questions."""
        return self.correct / self.total if self.total else 0.0

    @property
    def grade(self) -> str:
        return _level(self.accuracy, GRADES)

    @property
    def collapsed(self) -> bool:
        return any(module.collapsed_to for module in self.modules)

    def to_json(self) -> dict[str, Any]:
        return {
            "overall_accuracy": self.accuracy,
            "grade": self.grade,
            "total_correct": self.correct,
            "total_samples": self.total,
            "mode_collapse": self.collapsed,
            "results": [module.to_json() for module in self.modules],
        }


@dataclass(frozen=True)
class Report:
    """Results on questions seen in training and, where there are any, on held-out ones."""

    seen: Score
    heldout: Score | None = None

    @property
    def collapsed(self) -> bool:
        return self.seen.collapsed or (self.heldout is not None and self.heldout.collapsed)

    def to_json(self) -> dict[str, Any]:
        return {"seen": self.seen.to_json(), "heldout": self.heldout.to_json() if self.heldout else None}


def score(examples: Sequence[Example], answers: Sequence[str]) -> Score:
    """Compares answers with what was expected: equal, but for space around them.

    Raises ValueError when there is not one answer for each example.
    """
    failures: dict[str, list[Failure]] = {example.module: [] for example in examples}
    totals = Counter(example.module for example in examples)
    for example, answer in zip(examples, answers, strict=True):
        if answer.strip() != example.completion.strip():
            failures[example.module].append(Failure(example.prompt, example.completion, answer))
    return Score(
        tuple(
            ModuleScore(module, totals[module], tuple(wrong), _collapses(wrong))
            for module, wrong in failures.items()
        )
    )


def verify(
    answer: Answerer,
    seen: Iterable[Example],
    heldout: Iterable[Example] = (),
    *,
    sample_per_module: int | None = 50,
    seed: int = 0,
) -> Report:
    """Has questions answered and scores the answers.

    Args:
      answer: one answer for each prompt, in order.
      seen: examples of the training set; those asked are drawn by `seed`.
      heldout: examples that were not trained on.
      sample_per_module: at most so many of each module and set; None: all.
    """

    def ask(examples: Iterable[Example]) -> Score:
        chosen = choose(examples, sample_per_module, seed)
        return score(chosen, answer([example.prompt for example in chosen]) if chosen else [])

    held = ask(heldout)
    return Report(ask(seen), held if held.total else None)


def choose(examples: Iterable[Example], per_module: int | None, seed: int) -> list[Example]:
    """At most `per_module` examples of each module, the same for the same seed, grouped by module."""
    by_module: dict[str, list[Example]] = {}
    for example in examples:
        by_module.setdefault(example.module, []).append(example)
    chosen: list[Example] = []
    for module, members in by_module.items():
        if per_module is not None and per_module < len(members):
            members = random.Random(f"{seed}/{module}").sample(members, per_module)
        chosen += members
    return chosen


def _collapses(failures: Sequence[Failure]) -> tuple[tuple[str, int], ...]:
    counts = Counter(failure.answer.strip() for failure in failures)
    return tuple((answer, times) for answer, times in counts.most_common() if times >= COLLAPSE_AT)


def _level(accuracy: float, levels: Sequence[tuple[float, str]]) -> str:
    return next(name for least, name in levels if accuracy >= least)
