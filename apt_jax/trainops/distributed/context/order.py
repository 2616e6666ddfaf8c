"""Which tokens of a row each shard of the sequence holds.

Causal attention gives late tokens more work. The zig-zag order cuts a row into 2·n pieces and pairs an
early piece with a late one, so that each of n shards has the same work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apt_jax.core.errors import ConfigError


def check_length(length: int, shards: int, pieces: int = 1) -> None:
    """Raises ConfigError unless `shards` shards of `pieces` equal pieces make up a row of `length` tokens."""
    if length % (shards * pieces):
        raise ConfigError(
            f"data.sequence_length: {length} tokens cannot be cut into {shards * pieces} equal pieces, {pieces} per "
            f"shard of training.distributed.context_parallel={shards}; make it a multiple of {shards * pieces}"
        )


def zigzag_pieces(shard: Any, shards: int) -> tuple[Any, Any]:
    """The two pieces, of 2·shards, that a shard holds, in this order; `shard` may be an array."""
    return shard, 2 * shards - 1 - shard


def zigzag_order(length: int, shards: int) -> np.ndarray:
    """int64 [length]: the token index for each place, so that contiguous shard i holds pieces i and 2·shards-1-i.

    `x[:, zigzag_order(T, n)]` reorders a batch; positions and segment ids must be reordered with the tokens.

    Raises:
      ConfigError: 2·shards does not divide the length.
    """
    check_length(length, shards, 2)
    pieces_PT = np.arange(length).reshape(2 * shards, -1)
    return pieces_PT[np.array([zigzag_pieces(shard, shards) for shard in range(shards)]).ravel()].ravel()


def inverse_order(order: np.ndarray) -> np.ndarray:
    """The order that undoes `order`: `x[order][inverse_order(order)]` is x."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
