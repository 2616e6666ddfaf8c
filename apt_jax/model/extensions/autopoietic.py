"""Autopoietic attention: a gated low-rank self-feedback branch beside the attention heads.

    g_t = σ(W_g x_t + b)                 per token and head
    Δ_t = (x_t U) V
    O_t ← O_t + tanh(τ) · g_t ⊙ Δ_t      before the output projection

The gate sees its own token only, so the branch is causal, independent of padding, and needs no cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.model.layers.dense import Dense

_INITIAL_TAU = 0.1
_MIN_RANK = 4


class AutopoieticBranch(nnx.Module):
    """Adds to the heads' output; D -> [N, H] through rank max(4, D / autopoietic_ratio).

    Attributes:
      gate: Dense [D, N] with bias.
      down: Dense [D, rank], U above.
      up: Dense [rank, N·H], V above; all zero makes the branch vanish (see `silence`).
      tau: float32 [], strength before tanh.
    """

    def __init__(
        self, config: ModelConfig, heads: int, head_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        D, std = config.hidden_size, config.initializer_range
        rank = max(_MIN_RANK, D // config.autopoietic_ratio)
        self.gate = Dense(D, heads, axes=("embed", "heads"), std=std, dtype=dtype, rngs=rngs, use_bias=True)
        self.down = Dense(D, rank, axes=("embed", "rank"), std=std, dtype=dtype, rngs=rngs)
        self.up = Dense(rank, heads * head_dim, axes=("rank", "heads"), std=std, dtype=dtype, rngs=rngs)
        self.tau = nnx.Param(jnp.float32(_INITIAL_TAU), logical_axes=())

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """x_BTD -> what is added to o_BTNH."""
        gate_BTN = jax.nn.sigmoid(self.gate(x_BTD).astype(jnp.float32)) * jnp.tanh(self.tau[...])
        delta_BTR = self.up(self.down(x_BTD))
        delta_BTNH = delta_BTR.reshape(*gate_BTN.shape, -1)
        return gate_BTN[..., None].astype(delta_BTNH.dtype) * delta_BTNH


def silence(branch: AutopoieticBranch) -> None:
    """Makes the branch the identity, for grafting on pretrained weights; in place.

    Only V becomes zero: it then receives a gradient at once, and the other weights from the second step on.
    """
    branch.up.kernel[...] = jnp.zeros_like(branch.up.kernel[...])
