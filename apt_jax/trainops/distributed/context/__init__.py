"""Context parallelism: how attention sees whole rows when mesh axis `context` cuts the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.core.logical import per_device, rules_in_force
from apt_jax.model.api import AttentionKernel, AttentionMask
from apt_jax.trainops.distributed.context.allgather import allgather_attention
from apt_jax.trainops.distributed.context.order import check_length, inverse_order, zigzag_order
from apt_jax.trainops.distributed.context.ring import ring_attention
from apt_jax.trainops.distributed.context.shard import AXIS
from apt_jax.trainops.distributed.context.ulysses import kv_copies, ulysses_attention

__all__ = ["METHODS", "context_attention", "inverse_order", "needs_zigzag", "zigzag_order"]

METHODS = ("allgather", "ring", "ulysses")

_Q_AXES = ("batch", "seq", "heads", "head_dim")
_KV_AXES = ("batch", "seq", "kv_heads", "head_dim")


def needs_zigzag(method: str) -> bool:
    """Whether rows must come in `zigzag_order` (tokens, targets, positions, segments, weights), or as they are."""
    return method != "ulysses"


def context_attention(method: str) -> Callable[..., jax.Array]:
    """`AxisRules.attend` for a way of context parallelism.

    Returns:
      `attend(kernel, q_BTNH, k_BSKH, v_BSKH, mask, *, scale) -> o_BTNH` for global arrays. `mask` must hold the
      positions and segments in the order of the tokens, also where it is not packed. Only ulysses uses the kernel.
      Where the mesh does not cut the sequence, it is the kernel alone. What the backward pass needs is named
      "attn_out" for remat policies.

    Raises:
      ConfigError: an unknown method; from `attend`, sizes that cannot be cut.
    """
    if method not in METHODS:
        raise ConfigError(f"training.distributed.context_method: {unknown_name('method', method, METHODS)}")
    return partial(_attend, method)


def _attend(
    method: str,
    kernel: AttentionKernel,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
) -> jax.Array:
    rules = rules_in_force()
    shards = 1 if rules is None else rules.mesh.shape[AXIS]
    if rules is None or shards == 1:
        return checkpoint_name(kernel(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale), "attn_out")
    B, T, N, _ = q_BTNH.shape
    check_length(T, shards, 2 if needs_zigzag(method) else 1)
    mask_axes: Sequence[str | None] = ("batch", "seq")
    if method == "ring":
        local = partial(ring_attention, scale)
    elif method == "allgather":
        local = partial(allgather_attention, scale)
    else:
        kv_copies(N // rules.ways("heads"), k_BSKH.shape[2] // rules.ways("kv_heads"), shards)  # complains early
        local, mask_axes = partial(ulysses_attention, kernel, scale), ("batch", None)

    def shard(q: jax.Array, k: jax.Array, v: jax.Array, *arrays: jax.Array) -> jax.Array:
        return local(q, k, v, AttentionMask(*arrays, window=mask.window, packed=mask.packed))

    arrays = mask.q_positions_BT, mask.kv_positions_BS, mask.q_segments_BT, mask.kv_segments_BS
    whole = (jnp.broadcast_to(x, (B, T)) for x in arrays)
    cut = per_device(shard, rules, (_Q_AXES, _KV_AXES, _KV_AXES, *[mask_axes] * 4), _Q_AXES)
    return cut(q_BTNH, k_BSKH, v_BSKH, *whole)
