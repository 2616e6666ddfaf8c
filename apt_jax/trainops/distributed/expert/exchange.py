"""Rows in pieces of any size from every device to every other, and the same way back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from apt_jax.trainops.distributed.expert.rows import starts


@struct.dataclass
class Pieces:
    """int32 [S] each, by the other device.

    Attributes:
      start: where its piece begins among the rows of this device.
      size: rows of the piece.
      there: where the piece begins among the rows of the other device.
    """

    start: jax.Array
    size: jax.Array
    there: jax.Array


@struct.dataclass
class Exchange:
    """What this device sends and receives. Pieces to or from later devices begin later.

    Attributes:
      sent: pieces of its rows that go out.
      received: pieces of the result that come in.
      rows: number of rows before.
      results: number of rows of the result.
      axis: mesh axis.
      ragged: by `ragged_all_to_all`; else by an all-to-all of pieces padded to the largest possible.
    """

    sent: Pieces
    received: Pieces
    rows: int = struct.field(pytree_node=False)
    results: int = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)
    ragged: bool = struct.field(pytree_node=False)

    def reversed(self) -> Exchange:
        """The exchange that brings every row back to where it came from."""
        return self.replace(sent=self.received, received=self.sent, rows=self.results, results=self.rows)  # pyright: ignore[reportAttributeAccessIssue]  # flax adds it


def plan_exchange(sizes_SS: jax.Array, rows: int, results: int, axis: str, ragged: bool) -> Exchange:
    """Plans to send rows that lie in the order of the devices they are for.

    Every device receives in the order of the senders. What a receiver has no room for is not sent: the last
    rows of the last senders.

    Args:
      sizes_SS: int32 rows from each device (first axis) for each device, the same on all devices.
      rows: rows before.
      results: room for received rows on each device.
    """
    me = jax.lax.axis_index(axis)
    start_SS, there_SS = starts(sizes_SS, axis=1), jnp.minimum(starts(sizes_SS, axis=0), results)
    fits_SS = jnp.minimum(sizes_SS, results - there_SS)
    return Exchange(
        sent=Pieces(start_SS[me], fits_SS[me], there_SS[me]),
        received=Pieces(there_SS[:, me], fits_SS[:, me], start_SS[:, me]),
        rows=rows,
        results=results,
        axis=axis,
        ragged=ragged,
    )


@jax.custom_vjp
def exchange_rows(x_ND: jax.Array, exchange: Exchange) -> jax.Array:
    """Sends rows; its transpose is the reverse exchange.

    Args:
      x_ND: [rows, D].
      exchange: planned by `plan_exchange`, or its reverse.

    Returns:
      [results, D]; zeros where no row arrived.
    """
    sent, received, axis = exchange.sent, exchange.received, exchange.axis
    if exchange.ragged:
        empty_MD = jnp.zeros((exchange.results, *x_ND.shape[1:]), x_ND.dtype)
        return jax.lax.ragged_all_to_all(
            x_ND, empty_MD, sent.start, sent.size, sent.there, received.size, axis_name=axis
        )
    # A piece is never longer than either side.
    longest = min(exchange.rows, exchange.results)
    at_P = jnp.arange(longest, dtype=jnp.int32)
    index_SP = jnp.where(at_P < sent.size[:, None], sent.start[:, None] + at_P, exchange.rows)
    padded_SPD = x_ND.at[index_SP].get(mode="fill", fill_value=0)
    padded_SPD = jax.lax.all_to_all(padded_SPD, axis, split_axis=0, concat_axis=0, tiled=True)

    row_M = jnp.arange(exchange.results, dtype=jnp.int32)
    # Of pieces that begin at one row all but the last are empty.
    piece_M = jnp.searchsorted(received.start, row_M, side="right", method="scan_unrolled").astype(jnp.int32) - 1
    offset_M = row_M - received.start[piece_M]
    shards = received.start.size
    index_M = jnp.where(offset_M < received.size[piece_M], piece_M * longest + offset_M, shards * longest)
    return padded_SPD.reshape(shards * longest, *x_ND.shape[1:]).at[index_M].get(mode="fill", fill_value=0)


def _exchange_forward(x_ND: jax.Array, exchange: Exchange) -> tuple[jax.Array, Exchange]:
    return exchange_rows(x_ND, exchange), exchange


def _exchange_backward(exchange: Exchange, dy_MD: jax.Array) -> tuple[Any, ...]:
    return exchange_rows(dy_MD, exchange.reversed()), None


exchange_rows.defvjp(_exchange_forward, _exchange_backward)
