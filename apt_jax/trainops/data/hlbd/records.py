"""The two HLBD forms in memory and as JSON.

Hardcore: {"metadata": {…}, "data": {module: [{"input", "output"}]}}.
Full:     {"metadata": {…}, "samples": [{"concept", "level_1": {"字卡", "emoji"}, … "level_8": {"韩文"}}]}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Variant = Literal["hardcore", "full"]


@dataclass(frozen=True)
class Question:
    """A question with its one right answer."""

    input: str
    output: str


@dataclass(frozen=True)
class Card:
    """A concept on eight levels. Levels 1–4 describe the concept, levels 5–8 say one sentence."""

    concept: str
    card: str  # level 1 字卡
    emoji: str  # level 1
    phrase: str  # level 2 短语
    formula: str  # level 3 数学: the syntax, e.g. "S = NP + VP (NP: 我, VP: 喝茶)"
    pinyin: str  # level 4 拼音, one syllable per character of the card
    english: str  # level 5 英文
    chinese: str  # level 6 中文
    japanese: str  # level 7 日文
    korean: str  # level 8 韩文
    further: Mapping[str, Any] = field(default_factory=dict)  # level_9 and up, kept as they are

    @property
    def structure(self) -> str:
        """The right side of the formula without its words: "NP + VP"; "card" when there is none."""
        _, sign, right = self.formula.partition("=")
        return right.split("(")[0].strip() if sign else "card"

    def to_json(self) -> dict[str, Any]:
        return {
            "concept": self.concept,
            "level_1": {"字卡": self.card, "emoji": self.emoji},
            "level_2": {"短语": self.phrase},
            "level_3": {"数学": self.formula},
            "level_4": {"拼音": self.pinyin},
            "level_5": {"英文": self.english},
            "level_6": {"中文": self.chinese},
            "level_7": {"日文": self.japanese},
            "level_8": {"韩文": self.korean},
            **self.further,
        }

    def prompt(self) -> str:
        tagged = f"[EMOJI] {self.card} {self.emoji}\n[PHRASE] {self.phrase}"
        return f"概念: {self.concept}\n{tagged}\n句法结构: {self.formula}"

    def completion(self) -> str:
        tagged = f"[PY] {self.pinyin}\n[EN] {self.english}"
        return f"{tagged}\n{self.chinese}\n[JP] {self.japanese}\n[KR] {self.korean}"


@dataclass(frozen=True)
class Example:
    """What is trained on and asked: a prompt, the expected completion, and the module it is from."""

    module: str
    prompt: str
    completion: str


@dataclass(frozen=True)
class Hardcore:
    """Questions and answers by module, in file order."""

    metadata: Mapping[str, Any]
    modules: Mapping[str, tuple[Question, ...]]

    def __len__(self) -> int:
        return sum(len(questions) for questions in self.modules.values())

    def examples(self) -> Iterator[Example]:
        for module, questions in self.modules.items():
            for question in questions:
                yield Example(module, question.input, question.output)

    def to_json(self) -> dict[str, Any]:
        data = {
            module: [{"input": question.input, "output": question.output} for question in questions]
            for module, questions in self.modules.items()
        }
        return {"metadata": dict(self.metadata), "data": data}


@dataclass(frozen=True)
class Full:
    """Concept cards, in file order. An example's module is the card's syntactic structure."""

    metadata: Mapping[str, Any]
    cards: tuple[Card, ...]

    def __len__(self) -> int:
        return len(self.cards)

    def examples(self) -> Iterator[Example]:
        for card in self.cards:
            yield Example(card.structure, card.prompt(), card.completion())

    def to_json(self) -> dict[str, Any]:
        return {"metadata": dict(self.metadata), "samples": [card.to_json() for card in self.cards]}


Dataset = Hardcore | Full
