"""Tokens of one shard cut into tiles, and which tiles of keys a tile of queries can see."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

QUERIES, KEYS = 256, 1024  # tokens per tile; a tile of logits is heads · QUERIES · KEYS · 4 bytes per row


@struct.dataclass
class Tiles:
    """P pieces of a row, of L successive tokens each, all cut into as many tiles of t tokens; C tiles in all.

    Attributes:
      arrays: [C, B, t, …] each; a piece that t does not divide is filled up with zeros.
      tags_CB2t: int32 positions and segments as in `AttentionMask`; the filling has position -1.
      pieces_P: int32 [P], piece number i holds the tokens from index i · L of the row.
      length: L.
    """

    arrays: tuple[jax.Array, ...]
    tags_CB2t: jax.Array
    pieces_P: jax.Array
    length: int = struct.field(pytree_node=False)

    @property
    def per_piece(self) -> int:
        """Tiles of one piece."""
        return len(self.tags_CB2t) // len(self.pieces_P)

    @property
    def size(self) -> int:
        """Tokens t of a tile."""
        return self.tags_CB2t.shape[-1]

    def first(self, tile: jax.Array) -> jax.Array:
        """Index in the row of a tile's first token."""
        return self.pieces_P[tile // self.per_piece] * self.length + tile % self.per_piece * self.size

    def join(self, x_CBt: jax.Array) -> jax.Array:
        """[C, B, t, …] -> [B, T, …]: undoes the cut."""
        batch, size, *rest = x_CBt.shape[1:]
        pieces = len(self.pieces_P)
        x = jnp.moveaxis(x_CBt, 0, 1).reshape(batch, pieces, self.per_piece * size, *rest)
        return x[:, :, : self.length].reshape(batch, pieces * self.length, *rest)


def make_tiles(
    arrays: tuple[jax.Array, ...], positions_BT: jax.Array, segments_BT: jax.Array, pieces_P: jax.Array, size: int
) -> Tiles:
    """Cuts [B, T, …] arrays, which hold the pieces numbered `pieces_P` in this order, into tiles of `size` tokens."""
    pieces = len(pieces_P)
    length = positions_BT.shape[1] // pieces
    size = min(size, length)
    tags = [_cut(x, pieces, size, fill) for x, fill in ((positions_BT, -1), (segments_BT, 0))]
    return Tiles(tuple(_cut(x, pieces, size) for x in arrays), jnp.stack(tags, axis=2), pieces_P, length)


def _cut(x_BT: jax.Array, pieces: int, size: int, fill: int = 0) -> jax.Array:
    """[B, T, …] -> [C, B, t, …]."""
    batch, length, *rest = x_BT.shape
    length //= pieces
    tiles = -(-length // size)
    x = x_BT.reshape(batch, pieces, length, *rest)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, tiles * size - length)] + [(0, 0)] * len(rest), constant_values=fill)
    return jnp.moveaxis(x.reshape(batch, pieces * tiles, size, *rest), 1, 0)


def visible_tiles(
    first_query: Any, queries: int, first_key: Any, keys: int, tiles: int, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """Which of `tiles` successive tiles of keys a tile of queries may see: from the first up to the second.

    Decided by index in the row, not by position, which starts again with each document. That hides too
    little rather than too much: within a document positions grow at least as fast as indices.

    Args:
      first_query, first_key: index in the row of the first query, and of the first key of the first tile.
      queries, keys: tokens per tile.
      tiles: how many tiles of keys there are.
      window: as in `AttentionMask`.
    """
    start = 0 if window is None else (first_query - window + 1 - first_key) // keys
    stop = (first_query + queries - 1 - first_key) // keys + 1
    return jnp.clip(start, 0, tiles), jnp.clip(stop, 0, tiles)
