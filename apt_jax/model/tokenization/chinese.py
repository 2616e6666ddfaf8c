"""Chinese by character or by word, with the UTF-8 bytes of everything unseen."""

from __future__ import annotations

import importlib
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from apt_jax.core.errors import AptError
from apt_jax.model.tokenization.dynamic_tag import count_characters, most_frequent
from apt_jax.model.tokenization.engine import (
    BYTE_TOKENS,
    TrainedTokenizer,
    piece_pipeline,
    room_for_pieces,
    special_config,
)

ASCII = tuple(chr(code) for code in range(32, 127))
RESERVED = 5 + len(BYTE_TOKENS) + len(ASCII)

_segmenter_lock = threading.Lock()
_segmenter: Any = None


class ChineseTokenizer(TrainedTokenizer):
    """Characters (`mode="char"`), or jieba's words where they are frequent enough (`mode="word"`).

    A word outside the vocabulary falls into characters, a character outside it into bytes, so no text
    is lost. Printable ASCII is always present. Other software that reads the saved tokenizer.json of a
    word vocabulary sees characters only: it cannot run jieba. Its ids stay valid and decode to the same text.
    """

    kind = "chinese"

    @property
    def mode(self) -> Literal["char", "word"]:
        return self._config["mode"]

    def encode(self, text: str) -> list[int]:
        return self._ids(text) if self.mode == "char" else self._ids(_words(text))

    @classmethod
    def train(
        cls, documents: Iterable[str], vocab_size: int, mode: Literal["char", "word"] = "char"
    ) -> ChineseTokenizer:
        """Learns the most frequent pieces. ConfigError: `vocab_size` below 356. AptError: no jieba."""
        room = room_for_pieces(vocab_size, RESERVED)
        counts: Counter[str] = Counter()
        for document in documents:
            counts.update(count_characters([document]))
            if mode == "word":
                counts.update(word for word in _words(document) if len(word) > 1)
        for char in ASCII:
            counts.pop(char, None)
        pieces = [*ASCII, *most_frequent(counts, room)]
        pipeline = piece_pipeline(pieces, whole_words=mode == "word")
        return cls(pipeline, special_config(cls.kind, with_unk=True, mode=mode))


def _words(text: str) -> list[str]:
    words = list(_jieba().cut(text))
    if "".join(words) != text:  # lossless comes first: jieba promises nothing about odd white space
        return list(text)
    return words


def _jieba() -> Any:
    """The shared segmenter; building its prefix table takes about a second."""
    global _segmenter
    with _segmenter_lock:
        if _segmenter is None:
            try:
                jieba = importlib.import_module("jieba")
            except ImportError as error:
                raise AptError(
                    f"splitting Chinese into words needs jieba ({error}): pip install apt-jax[zh]"
                ) from error
            jieba.setLogLevel("WARNING")
            _segmenter = jieba.Tokenizer()
            _segmenter.initialize()
        return _segmenter
