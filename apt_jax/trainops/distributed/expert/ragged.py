"""Exchange without places: every expert gets as many tokens as chose it (MegaBlocks, arXiv:2211.15841)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from apt_jax.core.logical import target_platform
from apt_jax.trainops.distributed.expert.exchange import Exchange, exchange_rows, plan_exchange
from apt_jax.trainops.distributed.expert.rows import (
    ExpertOrder,
    experts_per_shard,
    gather_rows,
    sort_by_expert,
    starts,
    weigh,
)


@struct.dataclass
class RaggedRoute:
    """How to bring results back, and how received rows are grouped.

    Attributes:
      group_sizes: int32 [E / S], rows of each expert of this device, in order; rows after their sum are empty.
      dropped: int32 scalar, this device's assignments for which the receiver had no room; 0 without a bound.
      order: this device's assignments by expert.
      exchange: the way there.
      grouped_M: received row at each grouped position.
      received_M: grouped position of each received row.
    """

    group_sizes: jax.Array
    dropped: jax.Array
    order: ExpertOrder
    exchange: Exchange
    grouped_M: jax.Array
    received_M: jax.Array


def ragged_dispatch(
    x_TD: jax.Array,
    experts_TK: jax.Array,
    num_experts: int,
    buffer_factor: float | None = None,
    ragged: bool | None = None,
    axis: str = "expert",
) -> tuple[jax.Array, RaggedRoute]:
    """Sends each token to the devices of its experts and groups what arrives by expert.

    One all-gather of S · E counts and one exchange of rows. S is the size of `axis`. Call inside a
    `shard_map` that is manual over it. `jax.lax.ragged_dot(rows, weights, route.group_sizes)` can follow.

    Args:
      x_TD: this device's tokens.
      experts_TK: int32 in [0, E).
      num_experts: E, a multiple of S; device s holds experts s · E/S to (s + 1) · E/S - 1.
      buffer_factor: rows a device has room for, as a multiple of the balanced load T · k; None: S, which is
        always enough. What does not fit is dropped, from the last rows of the last senders, and counted.
      ragged: exchange by `ragged_all_to_all`; False: emulated by an all-to-all of pieces padded to
        min(T · k, room), with the same result. None: as the platform allows; XLA:CPU cannot.

    Returns:
      Rows [M, D] for this device's experts, grouped by expert and in each by source device, zeros after the
      last; and the route.

    Raises:
      ConfigError: S does not divide E.
    """
    if ragged is None:
        ragged = target_platform() != "cpu"
    local, shards = experts_per_shard(num_experts, axis), jax.lax.axis_size(axis)
    tokens, k = experts_TK.shape
    assignments = tokens * k
    room = assignments * shards
    if buffer_factor is not None:
        room = min(room, max(1, math.ceil(assignments * buffer_factor)))

    order = sort_by_expert(experts_TK, num_experts)
    sorted_AD = gather_rows(x_TD, order.order_A // k, order.rank_A.reshape(tokens, k))
    # [source device, target device, expert there]; known to all, so that both sides agree on what fits.
    count_SSE = jax.lax.all_gather(order.count_E, axis).reshape(shards, shards, local)
    exchange = plan_exchange(jnp.sum(count_SSE, axis=2), assignments, room, axis, ragged)
    received_MD = exchange_rows(sorted_AD, exchange)

    arrived_SE = count_SSE[:, jax.lax.axis_index(axis)]
    arrived_SE = jnp.clip(exchange.received.size[:, None] - starts(arrived_SE, axis=1), 0, arrived_SE)
    grouped_M, received_M = _swap_order(arrived_SE, room), _swap_order(arrived_SE.T, room)
    route = RaggedRoute(
        group_sizes=jnp.sum(arrived_SE, axis=0),
        dropped=assignments - jnp.sum(exchange.sent.size),
        order=order,
        exchange=exchange,
        grouped_M=grouped_M,
        received_M=received_M,
    )
    return gather_rows(received_MD, grouped_M, received_M[:, None]), route


def ragged_combine(y_MD: jax.Array, route: RaggedRoute, weights_TK: jax.Array) -> jax.Array:
    """Brings results back by the reverse exchange, then takes the weighted sum of each token's k results.

    Args:
      y_MD: results for what `ragged_dispatch` gave, row by row; D may differ.
      route: of that dispatch.
      weights_TK: a dropped assignment adds nothing, whatever its weight.

    Returns:
      [T, D].
    """
    received_MD = gather_rows(y_MD, route.received_M, route.grouped_M[:, None])
    sorted_AD = exchange_rows(received_MD, route.exchange.reversed())
    return weigh(gather_rows(sorted_AD, route.order.rank_A, route.order.order_A[:, None]), weights_TK)


def _swap_order(sizes_AB: jax.Array, rows: int) -> jax.Array:
    """The index that reorders rows in pieces by (a, b) to pieces by (b, a); rows after the last piece stay."""
    outer, _ = sizes_AB.shape
    start_AB = starts(sizes_AB.reshape(-1)).reshape(sizes_AB.shape)
    sizes_P = sizes_AB.T.reshape(-1)
    start_P, row_M = starts(sizes_P), jnp.arange(rows, dtype=jnp.int32)
    piece_M = jnp.searchsorted(start_P, row_M, side="right", method="scan_unrolled").astype(jnp.int32) - 1
    index_M = start_AB[piece_M % outer, piece_M // outer] + row_M - start_P[piece_M]
    return jnp.where(row_M < jnp.sum(sizes_P), index_M, row_M)
