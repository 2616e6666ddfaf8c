"""Context parallelism by gathering: every shard sees all keys and values, and computes its own queries.

One exchange each way and no steps to wait for, but each device holds the keys and values of whole rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.model.api import AttentionMask
from apt_jax.trainops.distributed.context import blocks
from apt_jax.trainops.distributed.context.order import inverse_order, zigzag_order
from apt_jax.trainops.distributed.context.shard import AXIS, backward_tiles, output, query_tiles
from apt_jax.trainops.distributed.context.tiles import KEYS, Tiles, make_tiles


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def allgather_attention(
    scale: float, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: AttentionMask
) -> jax.Array:
    """o_BTNH of this shard's queries over the keys of all shards; every array is this shard's, in zig-zag order.

    A query that may see no key gives 0 and has no gradient.
    """
    return _forward(scale, q_BTNH, k_BTKH, v_BTKH, mask)[0]


def _forward(
    scale: float, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: AttentionMask
) -> tuple[jax.Array, Any]:
    queries, keys = query_tiles(mask, k_BTKH.shape[2], q_BTNH), _all_keys(k_BTKH, v_BTKH, mask)
    nothing = blocks.nothing_seen(queries.arrays[0])
    seen = blocks.attend(nothing, queries, keys, scale=scale, window=mask.window)
    o_BTNH, lse_BTN = output(seen, queries, q_BTNH)
    return o_BTNH, (q_BTNH, k_BTKH, v_BTKH, mask, o_BTNH, lse_BTN)


def _backward(scale: float, residuals: Any, do_BTNH: jax.Array) -> tuple[Any, ...]:
    """Gathers again instead of keeping whole rows of keys; their gradients are summed over shards in float32."""
    q_BTNH, k_BTKH, v_BTKH, mask, o_BTNH, lse_BTN = residuals
    queries = backward_tiles(mask, k_BTKH.shape[2], q_BTNH, do_BTNH, o_BTNH, lse_BTN)
    keys = _all_keys(k_BTKH, v_BTKH, mask)
    sums = blocks.no_gradients(queries, keys)
    dq_CBtKGH, dkv_CBs2KH = blocks.gradients(sums, queries, keys, scale=scale, window=mask.window)
    dq_BTNH = queries.join(dq_CBtKGH).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    dkv_BT2KH = _scatter(keys.join(dkv_CBs2KH)).astype(k_BTKH.dtype)
    return dq_BTNH, dkv_BT2KH[:, :, 0], dkv_BT2KH[:, :, 1], None


allgather_attention.defvjp(_forward, _backward)


def _all_keys(k_BTKH: jax.Array, v_BTKH: jax.Array, mask: AttentionMask) -> Tiles:
    """The keys of whole rows as one piece, in natural order, so that what a query can see is one run of tiles."""
    kv_BS2KH = _gather(jnp.stack([k_BTKH, v_BTKH], axis=2))
    tags_BS2 = _gather(jnp.stack([mask.kv_positions_BS, mask.kv_segments_BS], axis=2))
    return make_tiles((kv_BS2KH,), tags_BS2[..., 0], tags_BS2[..., 1], jnp.zeros(1, jnp.int32), KEYS)


def _gather(x_BT: jax.Array) -> jax.Array:
    """[B, T, …] in zig-zag order -> [B, S, …] in natural order."""
    x_BS = jax.lax.all_gather(x_BT, AXIS, axis=1, tiled=True)
    return _by_pieces(x_BS, inverse_order(zigzag_order(*_pieces())))


def _scatter(x_BS: jax.Array) -> jax.Array:
    """[B, S, …] in natural order -> this shard's [B, T, …] in zig-zag order, summed over shards."""
    return jax.lax.psum_scatter(_by_pieces(x_BS, zigzag_order(*_pieces())), AXIS, scatter_dimension=1, tiled=True)


def _pieces() -> tuple[int, int]:
    """How many pieces, and shards."""
    shards = jax.lax.axis_size(AXIS)
    return 2 * shards, shards


def _by_pieces(x_BS: jax.Array, order: Any) -> jax.Array:
    """Reorders whole pieces along axis 1."""
    pieces = jnp.split(x_BS, len(order), axis=1)
    return jnp.concatenate([pieces[i] for i in order], axis=1)
