"""What the platform asks of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back.

    `decode(encode(text)) == text` for every valid Unicode text, and text never becomes one of the
    tokenizer's own special tokens by spelling it. Ids are ints in [0, vocab_size).
    """

    vocab_size: int  # largest id + 1
    pad_id: int  # fills rows; equal to eos_id where the vocabulary has no padding token
    bos_id: int | None  # none: the vocabulary has no start token (Qwen)
    eos_id: int
    sep_id: int | None  # between a prompt and its completion; none: they are simply adjacent

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of everything that decides the ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without start or end token. DataError: text is not valid Unicode."""
        ...

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of any iterable of ids (list, numpy or jax array); broken UTF-8 becomes U+FFFD."""
        ...

    def encode_document(self, text: str) -> list[int]:
        """`bos text eos`."""
        ...

    def encode_prompt(self, prompt: str) -> list[int]:
        """`bos prompt sep`: what a completion continues."""
        ...

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], int]:
        """`bos prompt sep completion eos`, and how many of those ids belong to the prompt part."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes the files `load` needs; an existing tokenizer there is replaced."""
        ...

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The tokenizer saved there, with the same fingerprint. DataError: missing or damaged."""
        ...
