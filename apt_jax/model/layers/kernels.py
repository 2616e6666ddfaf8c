"""Attention kernels in plain JAX and cuDNN, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from apt_jax.core.errors import ModelError, unknown_name
from apt_jax.model.api import AttentionKernel, AttentionMask

_MASKED = -1e30  # finite: a row with no visible key averages instead of becoming NaN


def _attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, allowed_BTS: jax.Array, scale: float
) -> jax.Array:
    """Softmax attention in float32 over all keys given; K/V heads are shared by groups, never repeated."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    logits_BKGTS = jnp.where(allowed_BTS[:, None, None], logits_BKGTS * scale, _MASKED)
    p_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v_BSKH).reshape(B, T, N, H)


def reference(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: AttentionMask, *, scale: float
) -> jax.Array:
    """Materialises the [T, S] matrix: the oracle of the tests, and fine for short sequences."""
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask.allowed(), scale)


CHUNK = 128  # queries whose logits exist at one time
_MAX_PREFIXES = 8  # distinct key ranges compiled; long sequences share one among several chunks


def chunked(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: AttentionMask, *, scale: float
) -> jax.Array:
    """Exact attention over chunks of queries, each against only the keys it can see.

    Chunk logits are computed again in the backward pass, so memory grows with CHUNK · S, not T · S.
    The key range of a chunk is static: up to its last query, and from `window` before its first.
    """
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if T == 1:
        return reference(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale)
    chunks_per_block = -(-T // (CHUNK * _MAX_PREFIXES))
    block = CHUNK * chunks_per_block
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first_key = 0 if S != T or mask.window is None else max(0, start - mask.window + 1)
        keys = slice(first_key, stop if S == T else S)
        outputs.append(_attend_block(q_BTNH, k_BSKH, v_BSKH, mask, scale, slice(start, stop), keys))
    return jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]


def _attend_block(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: AttentionMask,
    scale: float,
    queries: slice,
    keys: slice,
) -> jax.Array:
    """Attention of a block of queries to one key range, CHUNK queries at a time."""
    k, v = k_BSKH[:, keys], v_BSKH[:, keys]
    if mask.packed:
        allowed = mask.allowed(queries, keys)
    else:
        q_pos = jnp.arange(queries.start, queries.stop)[None, :, None]
        kv_pos = jnp.arange(keys.start, keys.stop)[None, None, :]
        allowed = kv_pos <= q_pos
        if mask.window is not None:
            allowed &= q_pos - kv_pos < mask.window

    @jax.checkpoint
    def attend(q: jax.Array, allowed: jax.Array) -> jax.Array:
        return _attend(q, k, v, allowed, scale)

    q = q_BTNH[:, queries]
    length = q.shape[1]
    if length <= CHUNK:
        return attend(q, allowed)
    whole = length - length % CHUNK

    def split(x: jax.Array) -> jax.Array:
        parts = x[:, :whole].reshape(x.shape[0], whole // CHUNK, CHUNK, *x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    out = jax.lax.map(lambda xs: attend(*xs), (split(q), split(allowed)))
    out = jnp.moveaxis(out, 0, 1).reshape(q.shape[0], whole, *q.shape[2:])
    if whole == length:
        return out
    return jnp.concatenate([out, attend(q[:, whole:], allowed[:, whole:])], axis=1)


def cudnn_refuses(dtype: jnp.dtype, head_dim: int, packed: bool) -> str | None:
    """Why cuDNN flash attention cannot serve such a call, or None if it can."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bf16 or fp16, not {jnp.dtype(dtype).name}"
    if head_dim % 8 or head_dim > 256:
        return f"needs a head_dim that is a multiple of 8 and at most 256, not {head_dim}"
    if packed:
        return "cannot keep packed documents apart"
    return None


def cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: AttentionMask, *, scale: float
) -> jax.Array:
    """cuDNN flash attention (NVIDIA Ampere and newer; head_dim above 128 from Hopper).

    Raises:
      ModelError: for what it cannot honour, instead of attending to the wrong keys.
    """
    why_not = cudnn_refuses(q_BTNH.dtype, q_BTNH.shape[-1], mask.packed)
    if why_not:
        raise ModelError(f"model.attention_kernel: 'cudnn' {why_not}; use 'chunked' or 'auto'")
    window = None if mask.window is None else (mask.window - 1, 0)
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=scale,
        is_causal=True,
        local_window_size=window,
        implementation="cudnn",
    )


BUILTIN: Mapping[str, Callable[..., jax.Array]] = {"reference": reference, "chunked": chunked, "cudnn": cudnn}


def select_kernel(
    name: str,
    platform: str,
    *,
    dtype: jnp.dtype,
    head_dim: int,
    packed: bool,
    available: Mapping[str, AttentionKernel] = BUILTIN,
) -> tuple[str, str]:
    """Resolves `model.attention_kernel`.

    Args:
      name: a registered kernel, or "auto".
      platform: where the step will run: cpu, gpu (cuda, rocm) or tpu.
      packed: whether batches hold several documents per row.

    Returns:
      The kernel's name, and one phrase that says why, for the run header.

    Raises:
      ModelError: an unknown kernel, or one that cannot do what is asked there.
    """
    on_nvidia = platform in ("gpu", "cuda")
    why_not = cudnn_refuses(dtype, head_dim, packed)
    if name == "auto":
        if not on_nvidia:
            return "chunked", f"plain JAX on {platform}"
        return ("cudnn", "flash attention") if why_not is None else ("chunked", f"cudnn {why_not}")
    if name not in available:
        raise ModelError(f"model.attention_kernel: {unknown_name('kernel', name, [*available, 'auto'])}")
    if name == "cudnn" and (why_not or not on_nvidia):
        why_not = why_not if on_nvidia else f"needs an NVIDIA GPU, not {platform}"
        raise ModelError(f"model.attention_kernel: 'cudnn' {why_not}; use 'chunked' or 'auto'")
    return name, "chosen in the config"
