"""What a shard does with its own queries under every method: cut them, collect the output, prepare the backward pass.

For code inside a `shard_map` over mesh axis `context`, whose shards hold two pieces of the row in zig-zag order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from apt_jax.model.api import AttentionMask
from apt_jax.trainops.distributed.context.blocks import Partial
from apt_jax.trainops.distributed.context.order import zigzag_pieces
from apt_jax.trainops.distributed.context.tiles import QUERIES, Tiles, make_tiles

AXIS = "context"  # the mesh axis that cuts the sequence


def pieces_of(shard: jax.Array) -> jax.Array:
    """int32 [2], the numbers of the pieces that a shard holds."""
    return jnp.stack(zigzag_pieces(shard, jax.lax.axis_size(AXIS)))


def query_tiles(mask: AttentionMask, kv_heads: int, *arrays_BTN: jax.Array) -> Tiles:
    """Arrays [B, T, N, …] as tiles [C, B, t, K, G, …]: heads grouped by the key/value head they share."""

    def grouped(x_BTN: jax.Array) -> jax.Array:
        B, T, N, *rest = x_BTN.shape
        return x_BTN.reshape(B, T, kv_heads, N // kv_heads, *rest)

    pieces_P = pieces_of(jax.lax.axis_index(AXIS))
    return make_tiles(tuple(map(grouped, arrays_BTN)), mask.q_positions_BT, mask.q_segments_BT, pieces_P, QUERIES)


def backward_tiles(
    mask: AttentionMask, kv_heads: int, q_BTNH: jax.Array, do_BTNH: jax.Array, o_BTNH: jax.Array, lse_BTN: jax.Array
) -> Tiles:
    """The queries as `blocks.gradients` wants them."""
    delta_BTN = jnp.einsum("BTNH,BTNH->BTN", o_BTNH, do_BTNH, preferred_element_type=jnp.float32)
    return query_tiles(mask, kv_heads, q_BTNH, do_BTNH, lse_BTN, delta_BTN)


def output(partial: Partial, queries: Tiles, like_BTNH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(o_BTNH in the dtype of `like_BTNH`, lse_BTN in float32), named for remat policies that keep attention."""
    o_CBtKGH, lse_CBtKG = partial.finish()
    o_BTNH = queries.join(o_CBtKGH.astype(like_BTNH.dtype)).reshape(like_BTNH.shape)
    lse_BTN = queries.join(lse_CBtKG).reshape(like_BTNH.shape[:3])
    return checkpoint_name(o_BTNH, "attn_out"), checkpoint_name(lse_BTN, "attn_out")
