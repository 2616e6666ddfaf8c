"""Cross-entropy over chunks of tokens: logits of the whole batch never exist.

Each chunk's logits are computed once. When a gradient is wanted, the chunk's gradients are formed while
its logits are at hand and scaled by the incoming cotangent later (as in Liger-Kernel, arXiv:2410.10989),
so the head costs three matmuls instead of the four of recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from apt_jax.core.logical import constrain, ways

_HEAD_AXES = (None, "vocab")  # brought together once, before the loop, where parameters are cut along D


@dataclass(frozen=True)
class CrossEntropyOptions:
    """Static choices of `chunked_cross_entropy`.

    Attributes:
      chunk: tokens, over all rows, whose logits exist at one time on each data- or context-parallel device.
      z_loss: weight of logsumexp².
      label_smoothing: share ε of the target mass spread evenly over the vocabulary.
      softcap: logits = c·tanh(logits / c), or None.
    """

    chunk: int
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    softcap: float | None = None


@struct.dataclass
class CrossEntropySums:
    """float32 sums over tokens, each token times its weight.

    Attributes:
      loss: cross-entropy with smoothing, plus the z-loss; the only one with a gradient.
      nll: plain negative log-likelihood, for perplexity.
      z: logsumexp².
      correct: tokens whose target has the highest logit (ties count).
    """

    loss: jax.Array
    nll: jax.Array
    z: jax.Array
    correct: jax.Array


def chunked_cross_entropy(
    x_BTD: jax.Array,
    w_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    options: CrossEntropyOptions,
) -> CrossEntropySums:
    """Cross-entropy of logits = x · w against targets.

    Args:
      x_BTD: hidden states in compute dtype.
      w_DV: the head, same dtype; its gradient is accumulated in float32 and rounded once.
      targets_BT: int32 in [0, V).
      weights_BT: float32 weight of each token; 0 leaves it out. Gets no gradient.
      options: static.
    """
    batch, length, _ = x_BTD.shape
    # Cut along T, not B: every chunk then holds all rows and stays spread over the data-parallel devices.
    # Where devices hold a piece of T each, a chunk takes its tokens from every piece.
    shards, pieces = _shards("batch", batch), _shards("seq", length)
    piece = length // pieces
    per_row = max(1, min(piece, options.chunk * shards // batch))
    chunks = -(-piece // per_row)
    pad = chunks * per_row - piece

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(batch, pieces, piece, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 3))
        x = jnp.moveaxis(x.reshape(batch, pieces, chunks, per_row, *x.shape[3:]), 2, 0)
        return x.reshape(chunks, batch, pieces * per_row, *x.shape[4:])

    return _sums(cut(x_BTD), w_DV, cut(targets_BT), cut(weights_BT.astype(jnp.float32)), options)


def _shards(axis: str, size: int) -> int:
    """Pieces that a logical axis is cut into by the sharding rules in force."""
    shards = ways(axis)
    return shards if size % shards == 0 else 1


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sums(
    x_CBTD: jax.Array,
    w_DV: jax.Array,
    targets_CBT: jax.Array,
    weights_CBT: jax.Array,
    options: CrossEntropyOptions,
) -> CrossEntropySums:
    """Sums over chunks (leading axis C) without gradients."""

    def step(sums: CrossEntropySums, xs: Any) -> tuple[CrossEntropySums, None]:
        x_BTD, targets_BT, weights_BT = xs
        chunk_sums, _ = _chunk(x_BTD, targets_BT, weights_BT, w_DV, options)
        return jax.tree.map(jnp.add, sums, chunk_sums), None

    # Sums stay apart per row and piece of it, and the head's gradient per data- and context-parallel device, until
    # after the loop: added up inside, each chunk would wait for a collective.
    w_DV = constrain(w_DV, _HEAD_AXES)
    start = _zeros(x_CBTD.shape[1], _shards("seq", x_CBTD.shape[2]))
    sums, _ = jax.lax.scan(step, start, (x_CBTD, targets_CBT, weights_CBT))
    return jax.tree.map(jnp.sum, sums)


def _forward(
    x_CBTD: jax.Array,
    w_DV: jax.Array,
    targets_CBT: jax.Array,
    weights_CBT: jax.Array,
    options: CrossEntropyOptions,
) -> tuple[CrossEntropySums, Any]:
    """As `_sums`, also forming the gradients for a cotangent of 1."""
    batch, width, vocab = x_CBTD.shape[1], *w_DV.shape
    shards, pieces = _shards("batch", batch), _shards("seq", x_CBTD.shape[2])
    dw_axes = ("batch", "seq", "embed", "vocab")
    w_DV = constrain(w_DV, _HEAD_AXES)

    def step(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
        sums, dw_PQDV = carry
        x_BTD, targets_BT, weights_BT = xs
        chunk_sums, dlogits_BTV = _chunk(x_BTD, targets_BT, weights_BT, w_DV, options)
        dx_BTD = jnp.einsum("BTV,DV->BTD", dlogits_BTV, w_DV, preferred_element_type=jnp.float32)
        # Rows R and tokens T stay two axes: contracted as one, XLA:CPU would not use its bf16 matmul.
        rows = (shards, batch // shards, pieces, -1)
        x_PRQTD, dlogits_PRQTV = x_BTD.reshape(*rows, width), dlogits_BTV.reshape(*rows, vocab)
        dw_PQDV += jnp.einsum("PRQTD,PRQTV->PQDV", x_PRQTD, dlogits_PRQTV, preferred_element_type=jnp.float32)
        sums = jax.tree.map(jnp.add, sums, chunk_sums)
        return (sums, constrain(dw_PQDV, dw_axes)), dx_BTD.astype(_gradient_dtype(x_BTD.dtype))

    dw_PQDV = constrain(jnp.zeros((shards, pieces, width, vocab), jnp.float32), dw_axes)
    start = (_zeros(batch, pieces), dw_PQDV)
    (sums, dw_PQDV), dx_CBTD = jax.lax.scan(step, start, (x_CBTD, targets_CBT, weights_CBT))
    # Empty arrays remember the dtypes: residuals are arrays only.
    dtypes_like = jnp.zeros((0,), x_CBTD.dtype), jnp.zeros((0,), w_DV.dtype)
    return jax.tree.map(jnp.sum, sums), (dx_CBTD, jnp.sum(dw_PQDV, axis=(0, 1)), *dtypes_like)


def _backward(options: CrossEntropyOptions, residuals: Any, cotangents: CrossEntropySums) -> tuple[Any, ...]:
    dx_CBTD, dw_DV, like_x, like_w = residuals
    scale, shape_CBT = cotangents.loss, dx_CBTD.shape[:3]
    dx = (dx_CBTD.astype(jnp.float32) * scale).astype(like_x.dtype)
    dw = (dw_DV * scale).astype(like_w.dtype)
    return dx, dw, np.zeros(shape_CBT, jax.dtypes.float0), jnp.zeros(shape_CBT, jnp.float32)


_sums.defvjp(_forward, _backward)


def _chunk(
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    w_DV: jax.Array,
    options: CrossEntropyOptions,
) -> tuple[CrossEntropySums, jax.Array]:
    """One chunk's sums per row and piece of it [B, Q], and d(loss sum)/d(x · w) in the dtype of x.

    The latter costs nothing where it is not used.
    """
    logits_BTV = jnp.einsum("BTD,DV->BTV", x_BTD, w_DV, preferred_element_type=jnp.float32)
    if options.softcap is not None:
        logits_BTV = options.softcap * jnp.tanh(logits_BTV / options.softcap)
    vocab = logits_BTV.shape[-1]
    # A comparison instead of a gather: it fuses, and works on a vocabulary spread over devices.
    hit_BTV = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == targets_BT[..., None]
    top_BT = jnp.max(logits_BTV, axis=-1)
    exp_BTV = jnp.exp(logits_BTV - top_BT[..., None])
    mass_BT = jnp.sum(exp_BTV, axis=-1)
    lse_BT = top_BT + jnp.log(mass_BT)
    target_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)

    eps = options.label_smoothing
    nll_BT = lse_BT - target_BT
    loss_BT = nll_BT + options.z_loss * lse_BT**2
    if eps:
        loss_BT += eps * (target_BT - jnp.mean(logits_BTV, axis=-1))
    pieces = _shards("seq", weights_BT.shape[1])

    def total(value_BT: jax.Array) -> jax.Array:
        return jnp.sum((value_BT * weights_BT).reshape(value_BT.shape[0], pieces, -1), axis=2)

    sums = CrossEntropySums(
        loss=total(loss_BT), nll=total(nll_BT), z=total(lse_BT**2), correct=total(target_BT >= top_BT)
    )
    # d lse = softmax; the target distribution is (1 - ε)·onehot + ε/V.
    scale_BT = (1.0 + 2.0 * options.z_loss * lse_BT) / mass_BT
    dlogits_BTV = exp_BTV * scale_BT[..., None] - jnp.where(hit_BTV, 1.0 - eps, 0.0) - eps / vocab
    if options.softcap is not None:
        dlogits_BTV *= 1.0 - (logits_BTV / options.softcap) ** 2
    dlogits_BTV *= weights_BT[..., None]
    return sums, dlogits_BTV.astype(x_BTD.dtype)


def _zeros(rows: int, pieces: int) -> CrossEntropySums:
    zero = jnp.zeros((rows, pieces), jnp.float32)
    return CrossEntropySums(zero, zero, zero, zero)


def _gradient_dtype(dtype: Any) -> Any:
    """fp16 would lose gradients that have not been multiplied by the loss scale yet."""
    return jnp.float32 if dtype == jnp.float16 else dtype
