"""Rows picked and put back by known indices, and assignments in the order of their experts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from apt_jax.core.errors import ConfigError


@jax.custom_vjp
def gather_rows(x_ND: jax.Array, index_M: jax.Array, places_NK: jax.Array) -> jax.Array:
    """Rows of `x` by index; its transpose is a gather too, where autodiff would scatter.

    Args:
      x_ND: rows.
      index_M: int32 row of `x` for each row of the result; N gives zeros.
      places_NK: int32, the up to K rows of the result that each row of `x` went to; M where fewer.

    Returns:
      [M, D].
    """
    del places_NK
    return x_ND.at[index_M].get(mode="fill", fill_value=0)


def _gather_forward(x_ND: jax.Array, index_M: jax.Array, places_NK: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gather_rows(x_ND, index_M, places_NK), places_NK


def _gather_backward(places_NK: jax.Array, dy_MD: jax.Array) -> tuple[Any, ...]:
    return jnp.sum(dy_MD.at[places_NK].get(mode="fill", fill_value=0), axis=1), None, None


gather_rows.defvjp(_gather_forward, _gather_backward)


@struct.dataclass
class ExpertOrder:
    """The assignments of a device's tokens, A = T · k in token order, sorted by expert.

    Attributes:
      order_A: assignment at each sorted position; assignments of one expert stay in token order.
      rank_A: sorted position of each assignment.
      count_E: assignments of each expert.
    """

    order_A: jax.Array
    rank_A: jax.Array
    count_E: jax.Array


def sort_by_expert(experts_TK: jax.Array, num_experts: int) -> ExpertOrder:
    """Sorts assignments, int32 in [0, E), stably."""
    experts_A = experts_TK.reshape(-1)
    order_A = jnp.argsort(experts_A, stable=True).astype(jnp.int32)
    rank_A = jnp.zeros_like(order_A).at[order_A].set(jnp.arange(order_A.size, dtype=jnp.int32))
    return ExpertOrder(order_A, rank_A, jnp.bincount(experts_A, length=num_experts).astype(jnp.int32))


def starts(sizes: jax.Array, axis: int = 0) -> jax.Array:
    """Where each of consecutive pieces begins: the sum of the sizes before it."""
    return jnp.cumsum(sizes, axis) - sizes


def weigh(y_AD: jax.Array, weights_TK: jax.Array) -> jax.Array:
    """Sums each token's k rows times their weights in float32; [T, D] in the dtype of `y`."""
    y_TKD = y_AD.reshape(*weights_TK.shape, -1)
    y_TD = jnp.einsum("TKD,TK->TD", y_TKD, weights_TK, preferred_element_type=jnp.float32)
    return y_TD.astype(y_AD.dtype)


def experts_per_shard(num_experts: int, axis: str) -> int:
    """E / shards; raises ConfigError where the mesh axis does not divide the experts."""
    shards = jax.lax.axis_size(axis)
    if num_experts % shards:
        raise ConfigError(
            f"{num_experts} experts cannot be split over mesh axis '{axis}' of size {shards}; make the number of "
            "experts a multiple or change training.distributed.expert_parallel"
        )
    return num_experts // shards
