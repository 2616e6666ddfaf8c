"""What a source of training data is: documents by number, and the errors that locate a bad one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from apt_jax.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Text:
    """A plain document; every token of it is learned."""

    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer; only the answer is learned unless data.train_on_prompt is set."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A document that is tokenised already, special tokens included.

    Attributes:
      ids: token ids, in the numbering of the run's tokenizer.
      prompt_length: how many of the first ids are a prompt.
    """

    ids: Sequence[int]
    prompt_length: int = 0


Document = Text | Pair | Tokens


class RecordError(DataError):
    """One record is bad; `data.on_bad_record=skip` leaves it out and counts it."""

    def __init__(self, where: str, problem: str):
        super().__init__(
            f"{where}: {problem}; mend the record, or leave such records out with "
            "--config.data.on_bad_record=skip"
        )
        self.where = where
        self.problem = problem


@runtime_checkable
class Source(Protocol):
    """Documents by number.

    Attributes:
      name: how messages call it, for example the path it was given.
      fingerprint: SHA-256 (hex) over everything that decides its documents and their order. Names and
        dates of files are not part of it, so that moved data stays the same data.

    A source that comes with its own held-out documents has an attribute `held_out`, a source or None.
    """

    name: str
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Document:
        """Returns document i, always the same one.

        Raises:
          RecordError: the record is damaged; others may be whole.
          DataError: the file cannot be read.
        """
        ...


@runtime_checkable
class Locating(Protocol):
    """A source that knows more of a document's origin than its number."""

    def where(self, i: int, /) -> str:
        """How messages call document i, e.g. `my.jsonl:17`."""
        ...


def held_out_of(source: Source) -> Source | None:
    """The held-out documents a source comes with, if it has any."""
    return getattr(source, "held_out", None)


def where(source: Source, i: int) -> str:
    """How messages call document i."""
    if isinstance(source, Locating):
        return source.where(i)
    return f"{source.name}: document {i + 1}"


# Called with (documents done, documents in all) now and then while a source is tokenised.
Progress = Callable[[int, int], None]


def texts(document: Document) -> Iterator[str]:
    """The strings of a document, to train a tokenizer on; a tokenised one has none."""
    if isinstance(document, Text):
        yield document.text
    elif isinstance(document, Pair):
        yield document.prompt
        yield document.completion
