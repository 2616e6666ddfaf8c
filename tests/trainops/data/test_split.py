"""What is held out is fixed by the seed, never empty, and never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Document, Pair, RecordError, Text, Tokens
from apt_jax.trainops.data.split import FEW_DOCUMENTS, split


class Listed:
    """Documents of a list; an exception among them is raised."""

    def __init__(self, documents: list[Document | Exception]):
        self.documents, self.name, self.fingerprint = documents, "listed", "f"

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int) -> Document:
        document = self.documents[i]
        if isinstance(document, Exception):
            raise document
        return document


def texts(view) -> list[str]:
    return [view[i].text for i in range(len(view))]


@pytest.mark.parametrize("count", [FEW_DOCUMENTS, 100, 5000])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_documents_are_divided(count, fraction):
    source = Listed([Text(str(i)) for i in range(count)])
    train, held = split(source, fraction, seed=0)
    assert held is not None
    assert sorted(texts(train) + texts(held), key=int) == [str(i) for i in range(count)]
    assert len(train) >= 1
    assert len(held) >= 1
    assert abs(len(held) - fraction * count) <= 4 * np.sqrt(count * fraction * (1 - fraction)) + 1


def test_the_seed_decides():
    source = Listed([Text(str(i)) for i in range(1000)])
    a, again, b = (split(source, 0.1, seed)[1].indices.tolist() for seed in (0, 0, 1))
    assert a == again != b


def test_documents_stay_held_out_when_more_are_added():
    few, more = (Listed([Text(str(i)) for i in range(n)]) for n in (500, 900))
    held = split(few, 0.1, 0)[1].indices
    assert np.array_equal(split(more, 0.1, 0)[1].indices[: len(held)], held)


def test_nothing_is_held_out_without_a_share():
    train, held = split(Listed([Text("a b c d")] * 30), 0.0, 0)
    assert (len(train), held) == (30, None)


def test_a_single_text_loses_its_tail_at_a_line_end():
    text = "".join(f"line {i}\n" for i in range(100))
    train, held = split(Listed([Text(text)]), 0.1, 0)
    (head,), (tail,) = texts(train), texts(held)
    assert head + tail == text
    assert head.endswith("\n")
    assert len(tail) == pytest.approx(0.1 * len(text), abs=10)


def test_text_without_breaks_is_cut_to_the_character():
    (head,), (tail,) = map(texts, split(Listed([Text("天" * 100)]), 0.1, 0))
    assert (len(head), len(tail)) == (90, 10)


@pytest.mark.parametrize("sizes", [[50, 50], [10, 80, 10], [96, 4], [1, 1, 98], [90, 10], [5, 5]])
def test_few_documents_lose_the_tail_of_all(sizes):
    source = Listed([Text(chr(97 + i) * n) for i, n in enumerate(sizes)])
    train, held = split(source, 0.1, 0)
    assert "".join(texts(train) + texts(held)) == "".join(texts(source))
    assert sum(map(len, texts(held))) == max(2, round(sum(sizes) / 10))
    assert all(texts(train) + texts(held))


def test_token_documents_are_cut_too():
    train, held = split(Listed([Tokens(list(range(100)))]), 0.1, 0)
    assert (train[0], held[0]) == (Tokens(list(range(90))), Tokens(list(range(90, 100))))


def test_pairs_are_never_cut():
    pairs = [Pair(f"p{i}", f"c{i}") for i in range(5)]
    train, held = split(Listed(list(pairs)), 0.1, 0)
    assert len(held) == 1
    assert {d.prompt for v in (train, held) for d in (v[i] for i in range(len(v)))} == {
        p.prompt for p in pairs
    }


@pytest.mark.parametrize("documents", [[Pair("p", "c")], [Text("abc")], [Text("")], [Text(""), Text("ab")]])
def test_too_little_is_not_divided(documents):
    train, held = split(Listed(documents), 0.1, 0)
    assert held is None
    assert len(train) == len(documents)


def test_a_bad_record_stops_or_counts_nothing():
    source = Listed([Text("a" * 50), RecordError("x", "bad"), Text("b" * 50)])
    with pytest.raises(DataError, match=r"^x: bad"):
        split(source, 0.1, 0)
    train, held = split(source, 0.1, 0, skip_bad=True)
    assert len(train) == 3
    assert texts(held) == ["b" * 10]


def test_views_of_different_parts_differ_in_fingerprint():
    source = Listed([Text("a" * 100)])
    views = [v for f in (0.1, 0.2, 0.0) for v in split(source, f, 0) if v is not None]
    assert len({v.fingerprint for v in views}) == 5
