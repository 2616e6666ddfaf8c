"""Exchange with a fixed number of places per expert; what does not fit is dropped (GShard, arXiv:2006.16668)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from apt_jax.trainops.distributed.expert.rows import (
    experts_per_shard,
    gather_rows,
    sort_by_expert,
    starts,
    weigh,
)


@struct.dataclass
class CapacityRoute:
    """How to bring results back, and what was dropped.

    Attributes:
      place_A: place of each assignment (A = T · k, token order) among the E · C of this device; E · C if dropped.
      source_P: assignment at each of the E · C places; A where empty.
      dropped: int32 scalar, this device's assignments that found no place.
      num_experts: E over all devices.
      axis: mesh axis.
    """

    place_A: jax.Array
    source_P: jax.Array
    dropped: jax.Array
    num_experts: int = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)


def capacity_for(tokens: int, k: int, num_experts: int, factor: float) -> int:
    """Places per (source device, expert): `factor` times the balanced load of `tokens` of one device, at least 1."""
    return max(1, math.ceil(tokens * k * factor / num_experts))


def capacity_dispatch(
    x_TD: jax.Array, experts_TK: jax.Array, num_experts: int, capacity: int, axis: str = "expert"
) -> tuple[jax.Array, CapacityRoute]:
    """Sends each token to the devices of its experts: one all-to-all of E · C · D elements.

    Earlier tokens come first, and of one token the earlier choice; places left over hold zeros. S is the
    size of `axis`. Call inside a `shard_map` that is manual over it.

    Args:
      x_TD: this device's tokens.
      experts_TK: int32 in [0, E).
      num_experts: E, a multiple of S; device s holds experts s · E/S to (s + 1) · E/S - 1.
      capacity: C, places per (source device, expert).

    Returns:
      Tokens for this device's experts [E / S, S · C, D], by source device in the middle; and the route.

    Raises:
      ConfigError: S does not divide E.
    """
    experts_per_shard(num_experts, axis)
    tokens, k = experts_TK.shape
    assignments, places = tokens * k, num_experts * capacity
    order = sort_by_expert(experts_TK, num_experts)
    start_E = starts(order.count_E)

    expert_A = experts_TK.reshape(-1)
    position_A = order.rank_A - start_E[expert_A]
    place_A = jnp.where(position_A < capacity, expert_A * capacity + position_A, places)

    position_EC = jax.lax.broadcasted_iota(jnp.int32, (num_experts, capacity), 1)
    sorted_EC = jnp.where(position_EC < order.count_E[:, None], start_E[:, None] + position_EC, assignments)
    source_P = order.order_A.at[sorted_EC.reshape(-1)].get(mode="fill", fill_value=assignments)

    # An empty place asks for token T, which is none.
    rows_PD = gather_rows(x_TD, source_P // k, place_A.reshape(tokens, k))
    rows_ECD = rows_PD.reshape(num_experts, capacity, -1)
    dropped = jnp.sum(jnp.maximum(order.count_E - capacity, 0))
    route = CapacityRoute(place_A, source_P, dropped, num_experts, axis)
    return jax.lax.all_to_all(rows_ECD, axis, split_axis=0, concat_axis=1, tiled=True), route


def capacity_combine(y_ESD: jax.Array, route: CapacityRoute, weights_TK: jax.Array) -> jax.Array:
    """Brings results back: one all-to-all, then the weighted sum of each token's k results.

    Args:
      y_ESD: results for what `capacity_dispatch` gave, in its layout; D may differ.
      route: of that dispatch.
      weights_TK: a dropped assignment adds nothing, whatever its weight.

    Returns:
      [T, D].
    """
    y_ECD = jax.lax.all_to_all(y_ESD, route.axis, split_axis=1, concat_axis=0, tiled=True)
    y_PD = y_ECD.reshape(route.source_P.size, -1)
    return weigh(gather_rows(y_PD, route.place_A, route.source_P[:, None]), weights_TK)
