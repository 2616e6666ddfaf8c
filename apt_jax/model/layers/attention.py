"""Grouped-query self-attention with rotary positions, optional QK-norm, window, cache and feedback branch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.logical import constrain
from apt_jax.model.api import AttentionKernel, AttentionMask
from apt_jax.model.extensions.autopoietic import AutopoieticBranch
from apt_jax.model.layers.attend import attend
from apt_jax.model.layers.dense import Dense
from apt_jax.model.layers.kernels import chunked
from apt_jax.model.layers.norm import RMSNorm
from apt_jax.model.layers.rope import apply_rope


@struct.dataclass
class LayerCache:
    """The whole cache's keys and values, seen from one layer.

    All layers share the two arrays, so that a scan carries and updates them in place.
    """

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    layer: jax.Array  # int32 []
    index: jax.Array  # int32 [], slot of the first new token

    def extend(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[LayerCache, jax.Array, jax.Array]:
        """Writes T new tokens; returns the cache and this layer's k_BSKH, v_BSKH."""
        start = (self.layer, 0, self.index, 0, 0)
        k_LBSKH = jax.lax.dynamic_update_slice(self.k_LBSKH, k_BTKH[None], start)
        v_LBSKH = jax.lax.dynamic_update_slice(self.v_LBSKH, v_BTKH[None], start)
        cache = self.replace(k_LBSKH=k_LBSKH, v_LBSKH=v_LBSKH)  # pyright: ignore[reportAttributeAccessIssue]
        return cache, k_LBSKH[self.layer], v_LBSKH[self.layer]


def heads_of(config: ModelConfig) -> tuple[int, int, int]:
    """(query heads N, key/value heads K, head dim H) with defaults filled in."""
    heads = config.num_attention_heads
    return heads, config.num_key_value_heads or heads, config.head_dim or config.hidden_size // heads


class Attention(nnx.Module):
    """o(softmax(q·kᵀ/√H)·v).

    Kernels: q [D, N·H], k and v [D, K·H], o [N·H, D], head-major.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        qk_norm: bool,
        autopoietic: bool,
        kernel: AttentionKernel,
        out_std: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        N, K, H = heads_of(config)
        D, std, bias = config.hidden_size, config.initializer_range, config.attention_bias

        def projection(rows: int, cols: int, axes: tuple[str, str], std: float) -> Dense:
            return Dense(rows, cols, axes=axes, std=std, dtype=dtype, rngs=rngs, use_bias=bias)

        self.q = projection(D, N * H, ("embed", "heads"), std)
        self.k = projection(D, K * H, ("embed", "kv_heads"), std)
        self.v = projection(D, K * H, ("embed", "kv_heads"), std)
        self.o = projection(N * H, D, ("heads", "embed"), out_std)
        self.q_norm = RMSNorm(H, eps=config.rms_norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(H, eps=config.rms_norm_eps) if qk_norm else None
        self.autopoietic = AutopoieticBranch(config, N, H, dtype=dtype, rngs=rngs) if autopoietic else None
        self.kernel = kernel
        self.heads = (N, K, H)

    def __call__(
        self,
        x_BTD: jax.Array,
        rotation: tuple[jax.Array, jax.Array],
        mask: AttentionMask,
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Returns the branch's output [B, T, D] (the residual is the caller's) and the extended cache."""
        B, T, _ = x_BTD.shape
        N, K, H = self.heads
        q_BTNH = self.q(x_BTD).reshape(B, T, N, H)
        k_BTKH = self.k(x_BTD).reshape(B, T, K, H)
        v_BTKH = checkpoint_name(self.v(x_BTD).reshape(B, T, K, H), "attn_v")
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        q_BTNH = checkpoint_name(apply_rope(q_BTNH, rotation), "attn_q")
        k_BTKH = checkpoint_name(apply_rope(k_BTKH, rotation), "attn_k")
        q_BTNH = constrain(q_BTNH, ("batch", "seq", "heads", "head_dim"))
        k_BTKH = constrain(k_BTKH, ("batch", "seq", "kv_heads", "head_dim"))
        v_BTKH = constrain(v_BTKH, ("batch", "seq", "kv_heads", "head_dim"))

        if cache is None:
            o_BTNH = attend(self.kernel, q_BTNH, k_BTKH, v_BTKH, mask, scale=H**-0.5)
        else:  # few queries, many keys, general mask: no fused kernel serves that
            cache, k_BSKH, v_BSKH = cache.extend(k_BTKH, v_BTKH)
            o_BTNH = chunked(q_BTNH, k_BSKH, v_BSKH, mask, scale=H**-0.5)
        if self.autopoietic is not None:
            o_BTNH = o_BTNH + self.autopoietic(x_BTD)
        o_BTNH = constrain(o_BTNH, ("batch", "seq", "heads", "head_dim"))
        return self.o(o_BTNH.reshape(B, T, N * H)), cache
