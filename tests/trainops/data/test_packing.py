"""No prediction is lost, doubled, or made across documents, whatever the packing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.trainops.data.packing import BLOCK, pack
from apt_jax.trainops.data.rows import Batch, empty_batch, fill
from tests.trainops.data.samples import make_store, numbered

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)
PACKINGS = st.sampled_from(["fit", "split", "none"])


def all_rows(store, table) -> Batch:
    batch = empty_batch(len(table), table.row_length, pad_id=0)
    rows = np.arange(len(table))
    fill(batch, rows, store, table, rows)
    return batch


@settings(max_examples=150, deadline=None)
@given(LENGTHS, PACKINGS, st.integers(2, 17), st.booleans(), st.integers(0, 5))
def test_every_next_token_pair_of_every_document_has_exactly_one_place(lengths, packing, row, shuffle, seed):
    documents = numbered(lengths)
    batch = all_rows(
        make_store(documents), pack(make_store(documents), row, packing, seed=seed, shuffle=shuffle)
    )

    used = batch["segment_ids"] > 0
    placed = sorted(zip(batch["tokens"][used].tolist(), batch["targets"][used].tolist(), strict=True))
    assert placed == sorted((a, b) for d in documents for a, b in pairwise(d))
    assert batch["loss_mask"][used].all()
    for name in ("tokens", "positions", "loss_mask", "targets"):
        assert not batch[name][~used].any()


@settings(max_examples=100, deadline=None)
@given(LENGTHS, PACKINGS, st.integers(2, 17), st.integers(0, 5))
def test_segments_hold_consecutive_tokens_of_one_document(lengths, packing, row, seed):
    documents = numbered(lengths)
    owner = {token: i for i, d in enumerate(documents) for token in d}
    store = make_store(documents)
    batch = all_rows(store, pack(store, row, packing, seed=seed))
    for r in range(len(batch["tokens"])):
        segments = batch["segment_ids"][r]
        count = segments.max()
        assert list(dict.fromkeys(segments.tolist())) in (
            [*range(1, count + 1)],
            [*range(1, count + 1), 0],  # padding comes last
        )
        for s in range(1, count + 1):
            at = segments == s
            tokens, n = batch["tokens"][r][at], int(at.sum())
            assert len({owner[t] for t in tokens.tolist()}) == 1
            assert np.array_equal(np.diff(tokens), np.ones(n - 1))
            assert np.array_equal(batch["positions"][r][at], np.arange(n))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(2, 17), st.integers(0, 5))
def test_fit_keeps_documents_whole_where_they_fit(lengths, row, seed):
    documents = numbered(lengths)
    table = pack(make_store(documents), row, "fit", seed=seed)
    starts = {d[0] - 1: len(d) - 1 for d in documents if len(d) - 1 <= row}
    pieces = dict(zip(table.start.tolist(), table.length.tolist(), strict=True))
    assert all(pieces[start] == places for start, places in starts.items())


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(2, 17))
def test_split_uses_the_least_possible_rows(lengths, row):
    table = pack(make_store(numbered(lengths)), row, "split", seed=0)
    assert len(table) == -(-sum(n - 1 for n in lengths) // row)


def test_split_without_shuffling_is_the_stream_itself():
    store = make_store([[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]])
    batch = all_rows(store, pack(store, 4, "split", seed=0, shuffle=False))
    assert batch["tokens"].tolist() == [[1, 2, 4, 5], [6, 7, 9, 0]]
    assert batch["targets"].tolist() == [[2, 3, 5, 6], [7, 8, 10, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 2, 2], [1, 1, 2, 0]]
    assert batch["positions"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]


def test_a_prompt_is_read_but_not_learned():
    store = make_store([[1, 2, 3, 4, 5], [6, 7, 8]], prompts=[3, 0])
    masked = all_rows(store, pack(store, 8, "split", seed=0, shuffle=False))
    # Targets 2 and 3 are prompt; 4 is the first token of the answer, 5 its end.
    assert masked["loss_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    learned = all_rows(store, pack(store, 8, "split", seed=0, shuffle=False, train_on_prompt=True))
    assert learned["loss_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]


def test_a_prompt_longer_than_a_row_stays_unlearned_over_the_cut():
    store = make_store([list(range(1, 11))], prompts=[6])
    batch = all_rows(store, pack(store, 4, "fit", seed=0, shuffle=False))
    assert batch["targets"][batch["loss_mask"] > 0].tolist() == [7, 8, 9, 10]


@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_pads_little(shuffle):
    lengths = np.random.default_rng(0).integers(3, 60, 3 * BLOCK).tolist()
    table = pack(make_store(numbered(lengths)), 128, "fit", seed=0, shuffle=shuffle)
    assert table.places / (len(table) * 128) > 0.99


def test_fit_without_shuffling_stays_within_a_block_of_neighbours():
    lengths = np.random.default_rng(0).integers(3, 60, 2 * BLOCK).tolist()
    store = make_store(numbered(lengths))
    table = pack(store, 128, "fit", seed=0, shuffle=False)
    document = np.searchsorted(store.offsets, table.start, side="right") - 1
    spread = [np.ptp(document[a:b]) for a, b in zip(table.first[:-1], table.first[1:], strict=True)]
    assert max(spread) < BLOCK
    assert np.all(np.diff(document[table.first[:-1]]) > 0)


def test_the_seed_decides_who_shares_a_row():
    store = make_store(numbered([5] * 50))
    a, b, c = (pack(store, 16, "fit", seed=seed).start.tolist() for seed in (0, 0, 1))
    assert a == b != c
