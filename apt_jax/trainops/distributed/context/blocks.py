"""Exact attention of local queries to some of the keys, continued from block to block, and its gradients.

The forward pass carries an unnormalised output with its maximum and mass (online softmax), so that blocks
of keys may come in any order. The backward pass of a block needs only the *final* output and
log-sum-exp of its queries (FlashAttention, arXiv:2205.14135, appendix B.4): p = exp(logits - lse) and
dlogits = p · (do·v - do·o). Logits exist for one tile of queries and keys at a time; tiles that no query
can see are not computed. Softmax and all sums are float32.

Shape suffixes beyond those of `model/api.py`: C tiles, t tokens of a tile of queries, s of a tile of
keys, G query heads per key/value head. Nothing in this file communicates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from apt_jax.model.api import AttentionMask
from apt_jax.trainops.distributed.context.tiles import Tiles, visible_tiles

_MASKED = -1e30  # finite, so that a row without a visible key stays finite


@struct.dataclass
class Partial:
    """Softmax attention over the keys seen so far, float32.

    Attributes:
      o_CBtKGH: sum of exp(logit - top) · v.
      top_CBKGt: the largest logit.
      mass_CBKGt: sum of exp(logit - top); at least 1 once a key was seen.
    """

    o_CBtKGH: jax.Array
    top_CBKGt: jax.Array
    mass_CBKGt: jax.Array

    def finish(self) -> tuple[jax.Array, jax.Array]:
        """(o_CBtKGH, lse_CBtKG) in float32; a query that saw no key gives 0 in both."""
        seen, mass = _by_token(self.mass_CBKGt) > 0, jnp.maximum(_by_token(self.mass_CBKGt), 1.0)
        return self.o_CBtKGH / mass[..., None], jnp.where(seen, _by_token(self.top_CBKGt) + jnp.log(mass), 0.0)


def nothing_seen(q_CBtKGH: jax.Array) -> Partial:
    """Where the forward pass starts."""
    C, B, t, K, G, _ = q_CBtKGH.shape
    rows = (C, B, K, G, t)
    return Partial(
        jnp.zeros(q_CBtKGH.shape, jnp.float32), jnp.full(rows, _MASKED, jnp.float32), jnp.zeros(rows, jnp.float32)
    )


def attend(partial: Partial, queries: Tiles, keys: Tiles, *, scale: float, window: int | None) -> Partial:
    """Adds more keys.

    Args:
      partial: of the keys seen before.
      queries: arrays (q_CBtKGH,).
      keys: arrays (kv_CBs2KH,).
    """
    (q_CBtKGH,), (kv_CBs2KH,) = queries.arrays, keys.arrays

    def row(c: jax.Array, partial: Partial) -> Partial:
        q_BtKGH = _get(q_CBtKGH, c)

        def tile(d: jax.Array, seen: Partial) -> Partial:
            k_BsKH, v_BsKH = _get_pair(kv_CBs2KH, d)
            logits, allowed = _logits(q_BtKGH, k_BsKH, queries, keys, c, d, scale, window)
            top = jnp.maximum(seen.top_CBKGt, jnp.max(logits, axis=-1))
            p_BKGts = jnp.where(allowed, jnp.exp(logits - top[..., None]), 0.0)
            fade = jnp.exp(seen.top_CBKGt - top)
            o = _einsum("BKGts,BsKH->BtKGH", p_BKGts.astype(v_BsKH.dtype), v_BsKH)
            return Partial(
                seen.o_CBtKGH * _by_token(fade)[..., None] + o,
                top,
                seen.mass_CBKGt * fade + jnp.sum(p_BKGts, axis=-1),
            )

        one = _over_tiles(tile, jax.tree.map(lambda x: _get(x, c), partial), queries, keys, c, window)
        return jax.tree.map(lambda x, y: _put(x, y, c), partial, one)

    return jax.lax.fori_loop(0, len(q_CBtKGH), row, partial)


def no_gradients(queries: Tiles, keys: Tiles) -> tuple[jax.Array, jax.Array]:
    """Where the backward pass starts."""
    return jnp.zeros(queries.arrays[0].shape, jnp.float32), jnp.zeros(keys.arrays[0].shape, jnp.float32)


def gradients(
    sums: tuple[jax.Array, jax.Array], queries: Tiles, keys: Tiles, *, scale: float, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """Adds the gradients of more keys.

    Args:
      sums: float32 (dq_CBtKGH, dkv_CBs2KH); the second of these keys only.
      queries: arrays (q_CBtKGH, do_CBtKGH, lse_CBtKG, delta_CBtKG), the last two float32: the log-sum-exp over
        all keys, not only these, and the product o · do.
      keys: arrays (kv_CBs2KH,).
    """
    q_CBtKGH, do_CBtKGH, lse_CBtKG, delta_CBtKG = queries.arrays
    (kv_CBs2KH,) = keys.arrays

    def row(c: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, do = _get(q_CBtKGH, c), _get(do_CBtKGH, c)
        lse, delta = (_by_row(_get(x, c))[..., None] for x in (lse_CBtKG, delta_CBtKG))

        def tile(d: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            k, v = _get_pair(kv_CBs2KH, d)
            logits, _ = _logits(q, k, queries, keys, c, d, scale, window)
            p_BKGts = jnp.exp(logits - lse)  # 0 where hidden: lse is finite even if nothing was seen
            dp_BKGts = _einsum("BtKGH,BsKH->BKGts", do, v)
            dlogits_BKGts = (p_BKGts * (dp_BKGts - delta) * scale).astype(q.dtype)
            dk_BsKH = _einsum("BKGts,BtKGH->BsKH", dlogits_BKGts, q)
            dv_BsKH = _einsum("BKGts,BtKGH->BsKH", p_BKGts.astype(do.dtype), do)
            dq_BtKGH, dkv = sums
            dq_BtKGH += _einsum("BKGts,BsKH->BtKGH", dlogits_BKGts, k)
            return dq_BtKGH, _put(dkv, _get(dkv, d) + jnp.stack([dk_BsKH, dv_BsKH], axis=2), d)

        dq_CBtKGH, dkv_CBs2KH = sums
        start = _get(dq_CBtKGH, c), dkv_CBs2KH
        dq_BtKGH, dkv_CBs2KH = _over_tiles(tile, start, queries, keys, c, window)
        return _put(dq_CBtKGH, dq_BtKGH, c), dkv_CBs2KH

    return jax.lax.fori_loop(0, len(q_CBtKGH), row, sums)


def _over_tiles(
    tile: Callable[[jax.Array, Any], Any], state: Any, queries: Tiles, keys: Tiles, c: jax.Array, window: int | None
) -> Any:
    """`state = tile(d, state)` for the tiles d of keys that tile c of the queries can see."""
    count = keys.per_piece
    for piece in range(len(keys.pieces_P)):
        first_key = keys.pieces_P[piece] * keys.length
        start, stop = visible_tiles(queries.first(c), queries.size, first_key, keys.size, count, window)
        state = jax.lax.fori_loop(piece * count + start, piece * count + stop, tile, state)
    return state


def _logits(
    q_BtKGH: jax.Array,
    k_BsKH: jax.Array,
    queries: Tiles,
    keys: Tiles,
    c: jax.Array,
    d: jax.Array,
    scale: float,
    window: int | None,
) -> tuple[jax.Array, jax.Array]:
    """float32 [B, K, G, t, s] with the hidden ones at `_MASKED`, and which are visible, [B, 1, 1, t, s]."""
    q_tags, kv_tags = _get(queries.tags_CB2t, c), _get(keys.tags_CB2t, d)
    mask = AttentionMask(q_tags[:, 0], kv_tags[:, 0], q_tags[:, 1], kv_tags[:, 1], window=window)
    allowed = mask.allowed()[:, None, None]
    logits = _einsum("BtKGH,BsKH->BKGts", q_BtKGH, k_BsKH)
    return jnp.where(allowed, logits * scale, _MASKED), allowed


def _einsum(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _get(x: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _get_pair(x_CBs2: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    one = _get(x_CBs2, index)
    return one[:, :, 0], one[:, :, 1]


def _put(x: jax.Array, one: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, one, index, 0)


def _by_token(x_KGt: jax.Array) -> jax.Array:
    """[…, K, G, t] -> […, t, K, G]."""
    return jnp.moveaxis(x_KGt, -1, -3)


def _by_row(x_tKG: jax.Array) -> jax.Array:
    """[…, t, K, G] -> […, K, G, t]."""
    return jnp.moveaxis(x_tKG, -3, -1)
