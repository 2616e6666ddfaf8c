"""Texts held in memory as a source."""

from __future__ import annotations

from collections.abc import Sequence

from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Document, Text
from apt_jax.trainops.data.files import fingerprint


class TextList:
    """Strings, or documents, given in Python.

    Raises:
      DataError: there are none, or one is neither a string nor a document.
    """

    def __init__(self, texts: Sequence[str | Document], name: str = "texts"):
        if not len(texts):
            raise DataError(f"{name}: the list is empty; give at least one text")
        self.name = name
        self._documents = [self._document(i, text) for i, text in enumerate(texts)]
        self.fingerprint = fingerprint([repr(document) for document in self._documents])

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, i: int) -> Document:
        return self._documents[i]

    def _document(self, i: int, text: str | Document) -> Document:
        if isinstance(text, str):
            return Text(text)
        if isinstance(text, Document):
            return text
        raise DataError(f"{self.name}: entry {i} is a {type(text).__name__}; give strings, Pairs or Tokens")
