"""Characters plus atomic tags: the vocabulary of the HLBD playground."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from apt_jax.model.tokenization.engine import (
    BYTE_TOKENS,
    TrainedTokenizer,
    piece_pipeline,
    room_for_pieces,
    special_config,
)

TAGS = ("[EMOJI]", "[PHRASE]", "[EN]", "[PY]", "[JP]", "[KR]")
RESERVED = 5 + len(TAGS) + len(BYTE_TOKENS)


class DynamicTagTokenizer(TrainedTokenizer):
    """One id per character of the corpus and per tag; any other character becomes its UTF-8 bytes.

    Tags are ordinary text that happens to be one token: decoding always keeps them. Ids: pad 0, unk 1
    (never produced), bos 2, eos 3, sep 4, the six tags, 256 bytes, then characters, frequent first.
    """

    kind = "dynamic_tag"

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> DynamicTagTokenizer:
        """Learns the corpus's most frequent characters. ConfigError: `vocab_size` below 267."""
        room = room_for_pieces(vocab_size, RESERVED)
        pieces = most_frequent(count_characters(documents), room)
        return cls(piece_pipeline(pieces, tags=TAGS), special_config(cls.kind, with_unk=True))


def count_characters(documents: Iterable[str]) -> Counter[str]:
    """How often each encodable character occurs."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    for char in [c for c in counts if "\ud800" <= c <= "\udfff"]:  # encode reports these, by position
        del counts[char]
    return counts


def most_frequent(counts: Counter[str], limit: int) -> list[str]:
    """The `limit` most frequent pieces; ties in code-point order, so the order of documents is no matter."""
    return [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]]
