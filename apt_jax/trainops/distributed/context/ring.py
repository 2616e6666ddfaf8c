"""Ring attention (arXiv:2310.01889): keys and values travel round the shards, queries stay.

The backward pass is a second trip with a rule of its own: what a block contributes follows from the final
output and log-sum-exp, so that nothing of the forward trip is kept but these. The gradients of keys and
values travel with them and come home last. A step's keys are sent on while it computes.

No collective stands under a condition: shards would disagree about it, and XLA would pair up permutes that
do not belong together, without an error. Shards differ only in which tiles they compute.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.model.api import AttentionMask
from apt_jax.trainops.distributed.context import blocks
from apt_jax.trainops.distributed.context.shard import AXIS, backward_tiles, output, pieces_of, query_tiles
from apt_jax.trainops.distributed.context.tiles import KEYS, Tiles, make_tiles


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(
    scale: float, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: AttentionMask
) -> jax.Array:
    """o_BTNH of this shard's queries over the keys of all shards; every array is this shard's, in zig-zag order.

    A query that may see no key gives 0 and has no gradient.
    """
    return _forward(scale, q_BTNH, k_BTKH, v_BTKH, mask)[0]


def _forward(
    scale: float, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: AttentionMask
) -> tuple[jax.Array, Any]:
    queries = query_tiles(mask, k_BTKH.shape[2], q_BTNH)

    def step(seen: blocks.Partial, keys: Tiles) -> blocks.Partial:
        return blocks.attend(seen, queries, keys, scale=scale, window=mask.window)

    seen = _visit(step, blocks.nothing_seen(queries.arrays[0]), _own_keys(k_BTKH, v_BTKH, mask))
    o_BTNH, lse_BTN = output(seen, queries, q_BTNH)
    return o_BTNH, (q_BTNH, k_BTKH, v_BTKH, mask, o_BTNH, lse_BTN)


def _backward(scale: float, residuals: Any, do_BTNH: jax.Array) -> tuple[Any, ...]:
    q_BTNH, k_BTKH, v_BTKH, mask, o_BTNH, lse_BTN = residuals
    queries = backward_tiles(mask, k_BTKH.shape[2], q_BTNH, do_BTNH, o_BTNH, lse_BTN)
    own = _own_keys(k_BTKH, v_BTKH, mask)

    def step(sums: tuple[jax.Array, jax.Array], keys: Tiles) -> tuple[jax.Array, jax.Array]:
        dq_CBtKGH, dkv_CBs2KH = blocks.gradients(sums, queries, keys, scale=scale, window=mask.window)
        return dq_CBtKGH, _to_next_shard(dkv_CBs2KH)

    dq_CBtKGH, dkv_CBs2KH = _visit(step, blocks.no_gradients(queries, own), own)
    dq_BTNH = queries.join(dq_CBtKGH).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    dkv_BT2KH = own.join(dkv_CBs2KH).astype(k_BTKH.dtype)  # home after as many steps as there are shards
    return dq_BTNH, dkv_BT2KH[:, :, 0], dkv_BT2KH[:, :, 1], None


ring_attention.defvjp(_forward, _backward)


def _visit(step: Callable[[Any, Tiles], Any], state: Any, keys: Tiles) -> Any:
    """`state = step(state, keys)` for the keys of every shard, the given ones first."""

    def body(carry: tuple[Any, Tiles], _: None) -> tuple[tuple[Any, Tiles], None]:
        state, keys = carry
        following = _next_keys(keys)  # does not depend on the step: sent while it computes
        return (step(state, keys), following), None

    (state, keys), _ = jax.lax.scan(body, (state, keys), length=jax.lax.axis_size(AXIS) - 1)
    return step(state, keys)


def _own_keys(k_BTKH: jax.Array, v_BTKH: jax.Array, mask: AttentionMask) -> Tiles:
    kv_BT2KH = jnp.stack([k_BTKH, v_BTKH], axis=2)  # one message: XLA hides one at a time behind a computation
    pieces_P = pieces_of(jax.lax.axis_index(AXIS))
    return make_tiles((kv_BT2KH,), mask.kv_positions_BS, mask.kv_segments_BS, pieces_P, KEYS)


def _next_keys(keys: Tiles) -> Tiles:
    """What the shard before this one holds now: keys on their way from shard to shard."""
    arrays, tags = _to_next_shard((keys.arrays, keys.tags_CB2t))
    owner = (keys.pieces_P[0] - 1) % jax.lax.axis_size(AXIS)  # a shard's first piece has the shard's number
    return Tiles(arrays, tags, pieces_of(owner), keys.length)


def _to_next_shard(tree: Any) -> Any:
    shards = jax.lax.axis_size(AXIS)
    return jax.lax.ppermute(tree, AXIS, [(i, (i + 1) % shards) for i in range(shards)])
