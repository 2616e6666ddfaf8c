"""The zig-zag order: a permutation, its pieces, its inverse, and that causal work is the same on every shard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_jax.core.errors import ConfigError
from apt_jax.trainops.distributed.context.order import inverse_order, zigzag_order

SHARDS, PIECE = st.integers(1, 16), st.integers(1, 12)


@given(SHARDS, PIECE)
def test_a_shard_holds_an_early_and_the_mirrored_late_piece(shards: int, piece: int) -> None:
    length = 2 * shards * piece
    order = zigzag_order(length, shards)
    pieces = np.arange(length).reshape(2 * shards, piece)
    for i, held in enumerate(order.reshape(shards, 2, piece)):
        assert (held == [pieces[i], pieces[2 * shards - 1 - i]]).all()
    assert (np.sort(order) == np.arange(length)).all()


@given(SHARDS, PIECE)
def test_the_inverse_restores_natural_order(shards: int, piece: int) -> None:
    order = zigzag_order(2 * shards * piece, shards)
    tokens = np.arange(1000, 1000 + len(order))
    assert (tokens[order][inverse_order(order)] == tokens).all()


@given(SHARDS, PIECE)
def test_every_shard_sees_equally_many_keys(shards: int, piece: int) -> None:
    order = zigzag_order(2 * shards * piece, shards)
    work = (order + 1).reshape(shards, -1).sum(axis=1)  # query i sees i + 1 keys
    assert len(set(work)) == 1


def test_a_length_that_does_not_divide_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        zigzag_order(20, 4)
    assert str(error.value) == (
        "data.sequence_length: 20 tokens cannot be cut into 8 equal pieces, 2 per shard of "
        "training.distributed.context_parallel=4; make it a multiple of 8"
    )
