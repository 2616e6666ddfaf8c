"""Batches depend on the step alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.trainops.data.batches import Batches, Part, endless, once
from apt_jax.trainops.data.packing import pack
from tests.trainops.data.samples import make_store

T = 8


def parts_of(*counts: int) -> list[Part]:
    """Sources of one-row documents; a row's first token tells source and row: 1000 · source + row + 1."""
    parts = []
    for source, count in enumerate(counts):
        documents = [[1000 * source + i + 1] * (T + 1) for i in range(count)]
        store = make_store(documents)
        parts.append(Part(f"s{source}", store, pack(store, T, "none", seed=0, shuffle=False)))
    return parts


def training(*counts: int, batch_size=4, weights=None, seed=0, shuffle=True, **options) -> Batches:
    parts = parts_of(*counts)
    order = endless(parts, weights or [1.0] * len(parts), seed=seed, shuffle=shuffle)
    return Batches(parts, order, batch_size=batch_size, pad_id=0, **options)


def drawn(batches: Batches, steps: int) -> list[int]:
    """First tokens of the rows of the first `steps` batches."""
    return [int(t) for s in range(steps) for t in batches.batch(s)["tokens"][:, 0]]


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_shapes_and_types():
    batch = training(10).batch(0)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "tokens": ((4, T), "int32"),
        "targets": ((4, T), "int32"),
        "segment_ids": ((4, T), "int32"),
        "positions": ((4, T), "int32"),
        "loss_mask": ((4, T), "float32"),
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_batches_are_pure(rows, batch_size, steps):
    one, other = (training(rows, batch_size=batch_size) for _ in range(2))
    expected = [one.batch(step) for step in steps]
    for step, batch in reversed(list(zip(steps, expected, strict=True))):
        assert equal(other.batch(step), batch)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.integers(0, 100), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_the_rows_of_processes_make_the_global_batch(rows, step, processes):
    batches = training(rows, 7, batch_size=12, weights=[3.0, 1.0])
    whole = batches.batch(step)
    for every in (np.array_split(np.arange(12), processes), [np.arange(i, 12, processes) for i in range(processes)]):
        parts = [batches.batch(step, mine) for mine in every]
        for mine, part in zip(every, parts, strict=True):
            assert equal(part, {k: whole[k][mine] for k in whole})


@pytest.mark.parametrize(("step", "rows"), [(-1, [0]), (0, [4]), (0, [-1, 0]), (0, [])])
def test_senseless_numbers_are_refused(step, rows):
    with pytest.raises(ValueError, match="no batch"):
        training(10).batch(step, np.array(rows, np.int64))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 3))
def test_every_row_comes_once_per_epoch(rows, seed):
    order = drawn(training(rows, batch_size=1, seed=seed), 3 * rows)
    for epoch in range(3):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(1, rows + 1))


def test_order_differs_between_epochs_and_seeds_but_not_between_runs():
    a, again, b = (drawn(training(50, batch_size=1, seed=seed), 100) for seed in (0, 0, 1))
    assert a == again
    assert len({tuple(a[:50]), tuple(a[50:]), tuple(b[:50]), tuple(b[50:]), tuple(range(1, 51))}) == 5


def test_without_shuffling_the_order_is_kept():
    assert drawn(training(6, shuffle=False), 3) == [1, 2, 3, 4, 5, 6] * 2


def test_epochs_are_counted_in_rows():
    batches = training(10, batch_size=4)
    assert len(batches) == 3
    assert batches.rows_per_epoch == 10
    assert [batches.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_a_mixture_draws_each_source_through_all_its_rows():
    order = drawn(training(6, 10, weights=[1.0, 3.0], batch_size=4), 20)
    first, second = [t for t in order if t < 1000], [t - 1000 for t in order if t > 1000]
    assert (len(first), len(second)) == (20, 60)
    assert sorted(first[:6]) == list(range(1, 7))
    for epoch in range(6):
        assert sorted(second[epoch * 10 : epoch * 10 + 10]) == list(range(1, 11))


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (1, 2), (3, 5), (1, 0), (0, 2)])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_continuing_at_any_step_equals_never_having_stopped(workers, prefetch, start):
    batches = training(13, 5, workers=workers, prefetch=prefetch)
    with batches.iterate(start, 20) as iterator:
        seen = list(iterator)
    assert len(seen) == 20 - start
    for step, batch in enumerate(seen, start):
        assert equal(batch, batches.batch(step))


def test_an_iterator_of_a_process_gives_its_rows():
    batches, rows = training(13, prefetch=2), np.array([1, 3])
    with batches.iterate(3, rows=rows) as iterator:
        for step in range(3, 6):
            assert equal(next(iterator), batches.batch(step, rows))


def test_iterators_end_their_threads():
    others = set(threading.enumerate())  # not counted: those that earlier tests left may end meanwhile
    iterator = training(13, workers=2, prefetch=4).iterate()
    next(iterator)
    mine = set(threading.enumerate()) - others
    assert mine
    iterator.close()
    for thread in mine:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in mine)


def test_an_error_in_a_reading_thread_reaches_the_reader():
    with (
        training(10, prefetch=2).iterate(0, rows=np.array([99])) as iterator,
        pytest.raises(ValueError, match="no batch 0 with rows"),
    ):
        next(iterator)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 15), min_size=1, max_size=3), st.integers(1, 6), st.booleans())
def test_evaluation_sees_every_row_once_then_padding(counts, batch_size, shuffle):
    parts = parts_of(*counts)
    order = once(parts, seed=0, shuffle=shuffle)
    batches = Batches(parts, order, batch_size=batch_size, pad_id=9)
    order = drawn(batches, len(batches))
    rows = sum(counts)
    assert sorted(order[:rows]) == [1000 * s + i + 1 for s, n in enumerate(counts) for i in range(n)]
    assert order[rows:] == [9] * (len(batches) * batch_size - rows)
    last = batches.batch(len(batches) - 1)
    full = rows - (len(batches) - 1) * batch_size
    assert last["loss_mask"][:full].all()
    assert not last["loss_mask"][full:].any()
    assert not last["segment_ids"][full:].any()
