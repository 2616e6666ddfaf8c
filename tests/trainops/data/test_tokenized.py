"""Token stores: exact, located errors, and a cache that is never believed unchecked."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from apt_jax.core.errors import DataError
from apt_jax.trainops.data import cache, tokenized
from apt_jax.trainops.data.api import Pair, RecordError, Text, Tokens
from apt_jax.trainops.data.split import whole
from apt_jax.trainops.data.tokenized import NoDocumentsError, TokenStore, tokenize
from tests.trainops.data.test_split import Listed

DOCUMENTS = [Text("天"), Pair("ab", "c"), Text(""), Tokens([7, 8, 9], 2), Tokens([7])]


def stored(store: TokenStore) -> list[list[int]]:
    return [store.tokens[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


def test_documents_are_stored_with_their_special_tokens(tokenizer, tmp_path):
    store = tokenize(whole(Listed(list(DOCUMENTS))), tokenizer, folder=tmp_path, label="train")
    assert stored(store) == [[1, 0xE5 + 4, 0xA4 + 4, 0xA9 + 4, 2], [1, 101, 102, 3, 103, 2], [7, 8, 9]]
    assert store.prompts.tolist() == [0, 4, 2]
    assert (store.empty, store.skipped, len(store)) == (2, 0, 3)
    assert store.tokens.dtype == np.uint16


def test_large_vocabularies_take_four_bytes(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "vocab_size", 70_000)
    store = tokenize(whole(Listed([Tokens([69_999, 5])])), tokenizer, folder=None, label="train")
    assert store.tokens.dtype == np.uint32
    assert stored(store) == [[69_999, 5]]


@pytest.mark.parametrize("text", ["ab\ncd\nefghijklmn\n\no", "abcdefghijklmnop", "\n" * 9])
def test_long_texts_are_encoded_in_pieces_without_loss(tokenizer, monkeypatch, text):
    monkeypatch.setattr(tokenized, "_CHUNK", 4)
    store = tokenize(whole(Listed([Text(text)])), tokenizer, folder=None, label="train")
    assert stored(store) == [tokenizer.encode_document(text)]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (Tokens([5, 260]), "token 260 at place 1 is outside the vocabulary of 260"),
        (Tokens([5, -1]), "token -1 at place 1 is outside the vocabulary of 260"),
        (Tokens([5, 1 << 70]), "token ids must be whole numbers"),
    ],
)
def test_ids_outside_the_vocabulary_are_located(tokenizer, document, problem):
    source = Listed([Text("ok"), document])
    with pytest.raises(RecordError, match=rf"^listed: document 2: {problem}"):
        tokenize(whole(source), tokenizer, folder=None, label="train")


def test_what_the_tokenizer_refuses_is_located(tokenizer, monkeypatch):
    def refuse(text: str) -> list[int]:
        raise DataError("lone surrogate")

    monkeypatch.setattr(tokenizer, "encode_document", refuse, raising=False)
    with pytest.raises(RecordError, match=r"^listed: document 1: lone surrogate; mend the record"):
        tokenize(whole(Listed([Text("a")])), tokenizer, folder=None, label="train")


def test_bad_records_can_be_left_out_and_are_counted(tokenizer, tmp_path):
    source = Listed([Text("a"), RecordError("my.jsonl:2", "bad"), Tokens([900, 1]), Text("b")])
    for _ in range(2):  # the second time from the cache
        store = tokenize(whole(source), tokenizer, folder=tmp_path, label="train", skip_bad=True)
        assert stored(store) == [[1, 101, 2], [1, 102, 2]]
        assert (store.skipped, store.first_skipped) == (2, "my.jsonl:2: bad")
    with pytest.raises(RecordError, match=r"^my.jsonl:2: bad"):
        tokenize(whole(source), tokenizer, folder=tmp_path, label="train")


def test_nothing_usable_is_an_error(tokenizer, tmp_path):
    source = Listed([Text(""), RecordError("my.jsonl:2", "bad")])
    with pytest.raises(
        NoDocumentsError, match=r"no usable document \(1 bad and 1 empty of 2; the first: my.jsonl:2"
    ):
        tokenize(whole(source), tokenizer, folder=tmp_path, label="train", skip_bad=True)
    assert list(tmp_path.iterdir()) == []


# --- the cache


class Counting(Listed):
    reads = 0

    def __getitem__(self, i: int):
        self.reads += 1
        return super().__getitem__(i)


def test_a_second_run_reads_nothing_again(tokenizer, tmp_path):
    source = Counting([Text("abc")] * 5)
    first = tokenize(whole(source), tokenizer, folder=tmp_path, label="train")
    source.reads = 0
    second = tokenize(whole(source), tokenizer, folder=tmp_path, label="train")
    assert source.reads == 0
    assert stored(first) == stored(second)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("what", ["source", "tokenizer"])
def test_other_data_or_tokenizer_replaces_the_entry(tokenizer, tmp_path, monkeypatch, what):
    tokenize(whole(Listed([Text("abc")])), tokenizer, folder=tmp_path, label="train")
    tokenize(whole(Listed([Text("abc")])), tokenizer, folder=tmp_path, label="train-b")
    other = Listed([Text("xyz")])
    if what == "source":
        other.fingerprint = "g"
    else:
        monkeypatch.setattr(type(tokenizer), "fingerprint", "other")
    store = tokenize(whole(other), tokenizer, folder=tmp_path, label="train")
    assert stored(store) == [tokenizer.encode_document("xyz")]
    assert sorted(p.name.partition(".")[0] for p in tmp_path.iterdir()) == ["train", "train-b"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink, lambda p: p.write_text("{}")])
@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "prompts.npy", "meta.json"])
def test_a_damaged_entry_is_made_again(tokenizer, tmp_path, damage, name):
    source = whole(Listed([Text("abc")] * 5))
    expected = stored(tokenize(source, tokenizer, folder=tmp_path, label="train"))
    (entry,) = tmp_path.iterdir()
    damage(entry / name)
    assert stored(tokenize(source, tokenizer, folder=tmp_path, label="train")) == expected
    assert json.loads((entry / "meta.json").read_text())["meta"]["skipped"] == 0


def test_a_failure_leaves_nothing_behind(tokenizer, tmp_path):
    with pytest.raises(RecordError):
        tokenize(
            whole(Listed([Text("a"), RecordError("x", "bad")])), tokenizer, folder=tmp_path, label="train"
        )
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_make_the_same_entry_at_once(tmp_path):
    with cache.writing(tmp_path, "train", "key") as slow:
        slow.open("a").close()
        with cache.writing(tmp_path, "train", "key") as fast:
            with fast.open("a") as file:
                file.write(b"1")
            fast.meta["by"] = "fast"
    entry = cache.find(tmp_path, "train", "key")
    assert entry is not None
    assert entry.meta == {"by": "fast"}
    assert [p.name for p in tmp_path.iterdir()] == [entry.folder.name]


def test_a_full_disk_is_one_line(tokenizer, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenized.np, "save", full)
    with pytest.raises(
        DataError, match=r"cannot be written \(No space left on device\); free space or use another"
    ):
        tokenize(whole(Listed([Text("a")])), tokenizer, folder=tmp_path, label="train")
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_stays(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = tokenize(whole(Listed([Text("abc")])), tokenizer, folder=None, label="train")
    assert stored(store) == [tokenizer.encode_document("abc")]
    assert list(tmp_path.iterdir()) != []
    del store
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_up_to_the_end(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenized, "_REPORT_EVERY", 2)
    seen: list[tuple[int, int]] = []
    source = whole(Listed([Text("a")] * 5))
    tokenize(source, tokenizer, folder=None, label="train", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]
