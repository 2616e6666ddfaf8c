"""Which tiles are computed: all that hold a visible pair, no other, and equally many on every device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.trainops.distributed.context.order import zigzag_pieces
from apt_jax.trainops.distributed.context.tiles import make_tiles, visible_tiles

SMALL = st.integers(1, 6)


@settings(deadline=None)
@given(
    queries=SMALL,
    keys=SMALL,
    tiles=SMALL,
    first_query=st.integers(0, 40),
    first_key=st.integers(0, 40),
    window=st.none() | st.integers(1, 30),
)
def test_the_visible_tiles_are_those_with_a_visible_pair(
    queries: int, keys: int, tiles: int, first_query: int, first_key: int, window: int | None
) -> None:
    distance = (first_query + np.arange(queries))[:, None] - (first_key + np.arange(keys * tiles))
    pairs = (distance >= 0) & (distance < (window or 10**6))
    visible = np.flatnonzero(pairs.reshape(queries, tiles, keys).any(axis=(0, 2)))
    start, stop = map(int, visible_tiles(first_query, queries, first_key, keys, tiles, window))
    assert list(range(start, stop)) == list(visible)


def work(pieces: dict[int, tuple[int, ...]], length: int, tile: int) -> list[int]:
    """Tiles computed by each shard in a whole trip round the ring."""

    def count(query_piece: int, key_piece: int) -> int:
        total = 0
        for first in range(query_piece * length, (query_piece + 1) * length, tile):
            start, stop = visible_tiles(first, tile, key_piece * length, tile, length // tile, None)
            total += max(0, int(stop) - int(start))
        return total

    everyone = [key_piece for held in pieces.values() for key_piece in held]
    return [sum(count(q, k) for q in held for k in everyone) for held in pieces.values()]


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_causal_work_is_balanced(shards: int) -> None:
    zigzag = work({i: zigzag_pieces(i, shards) for i in range(shards)}, 8, 8)
    assert zigzag == [2 * shards + 1] * shards  # pairs of pieces: 2 a step, and 3 in the first
    assert len(set(work({i: zigzag_pieces(i, shards) for i in range(shards)}, 8, 2))) == 1
    contiguous = work({i: (2 * i, 2 * i + 1) for i in range(shards)}, 8, 8)
    assert sum(contiguous) == sum(zigzag)
    assert max(contiguous) >= 1.5 * min(zigzag) - 1  # what the order saves


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_every_step_of_the_ring_is_balanced(shards: int) -> None:
    for step in range(shards):
        steps = []
        for shard in range(shards):
            held, passing = zigzag_pieces(shard, shards), zigzag_pieces((shard - step) % shards, shards)
            steps.append(sum(int(visible_tiles(q * 4, 4, k * 4, 4, 1, None)[1]) for q in held for k in passing))
        assert steps == [2 if step else 3] * shards


def test_tiles_know_their_place_and_are_put_together_again() -> None:
    x = jnp.arange(2 * 14 * 3).reshape(2, 14, 3)
    positions = jnp.tile(jnp.arange(14), (2, 1))
    tiles = make_tiles((x,), positions, positions + 50, jnp.array([1, 6]), 3)
    assert tiles.arrays[0].shape == (6, 2, 3, 3)
    assert [int(tiles.first(c)) for c in range(6)] == [7, 10, 13, 42, 45, 48]
    np.testing.assert_array_equal(tiles.tags_CB2t[2, 0], [[6, -1, -1], [56, 0, 0]])  # filled up
    np.testing.assert_array_equal(tiles.join(tiles.arrays[0]), x)
