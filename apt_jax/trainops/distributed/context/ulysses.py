"""DeepSpeed-Ulysses (arXiv:2309.14509): an all-to-all turns a shard of the sequence into a shard of the heads.

The model's own kernel then sees whole rows, in natural order, and a second all-to-all turns its output back.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core.errors import ConfigError
from apt_jax.model.api import AttentionKernel, AttentionMask
from apt_jax.trainops.distributed.context.shard import AXIS


def kv_copies(heads: int, kv_heads: int, shards: int) -> int:
    """How often each key/value head is sent so that all shards get whole groups: the least number that works.

    Args:
      heads, kv_heads: on one tensor-parallel device.
      shards: of the sequence.

    Raises:
      ConfigError: the query heads cannot be shared out.
    """
    if heads % shards:
        raise ConfigError(
            f"training.distributed.context_parallel: ulysses cannot share {heads} heads (model.num_attention_heads ÷ "
            f"tensor_parallel) among {shards} devices; use a divisor of {heads}, or context_method=ring"
        )
    return shards // math.gcd(kv_heads, shards)


def ulysses_attention(
    kernel: AttentionKernel,
    scale: float,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: AttentionMask,
) -> jax.Array:
    """o_BTNH of this shard's queries.

    Args:
      kernel: called with whole rows, of which this shard takes some heads.
      q_BTNH, k_BTKH, v_BTKH: this shard's, contiguous in natural order.
      mask: of whole rows.
    """
    copies = kv_copies(q_BTNH.shape[2], k_BTKH.shape[2], jax.lax.axis_size(AXIS))
    q_BSNH, k_BSKH, v_BSKH = map(_to_heads, (q_BTNH, _repeat(k_BTKH, copies), _repeat(v_BTKH, copies)))
    o_BSNH = kernel(q_BSNH, k_BSKH, v_BSKH, mask, scale=scale)
    o_BTNH = jax.lax.all_to_all(o_BSNH, AXIS, split_axis=1, concat_axis=2, tiled=True)
    return checkpoint_name(o_BTNH, "attn_out")


def _to_heads(x_BTNH: jax.Array) -> jax.Array:
    """All heads of some tokens -> all tokens of some heads."""
    return jax.lax.all_to_all(x_BTNH, AXIS, split_axis=2, concat_axis=1, tiled=True)


def _repeat(x_BTKH: jax.Array, copies: int) -> Any:
    return x_BTKH if copies == 1 else jnp.repeat(x_BTKH, copies, axis=2)
