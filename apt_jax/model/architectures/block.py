"""One pre-norm decoder layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.logical import constrain
from apt_jax.model.api import AttentionKernel, AttentionMask, Controls
from apt_jax.model.extensions.left_spin import left_spin_residual
from apt_jax.model.layers.attention import Attention, LayerCache
from apt_jax.model.layers.dropout import dropout
from apt_jax.model.layers.mlp import SwiGLU
from apt_jax.model.layers.norm import RMSNorm


@dataclass(frozen=True)
class Traits:
    """What an architecture switches on, with every `None` of the config decided."""

    qk_norm: bool = False
    autopoietic: bool = False
    left_spin: bool = False


@struct.dataclass
class LayerInputs:
    """What all layers of one call share."""

    rotation: tuple[jax.Array, jax.Array]
    mask: AttentionMask
    controls: Controls
    dropout_key: jax.Array | None


class Block(nnx.Module):
    """x + attn(attn_norm(x)), then x + mlp(mlp_norm(x)); `+` is the left-spin residual where switched on."""

    def __init__(
        self,
        config: ModelConfig,
        traits: Traits,
        *,
        kernel: AttentionKernel,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        # The stream adds up 2L branches; their last projections start smaller, so that its size stays put.
        out_std = config.initializer_range / (2 * config.num_layers) ** 0.5
        self.attn_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = Attention(
            config,
            qk_norm=traits.qk_norm,
            autopoietic=traits.autopoietic,
            kernel=kernel,
            out_std=out_std,
            dtype=dtype,
            rngs=rngs,
        )
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config, out_std=out_std, dtype=dtype, rngs=rngs)
        self.dropout = config.dropout
        self.residuals = None
        self.left_spin = (config.left_spin_alpha, config.left_spin_tau) if traits.left_spin else None

    def __call__(
        self, x_BTD: jax.Array, inputs: LayerInputs, index: jax.Array, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None, Mapping[str, jax.Array]]:
        """Returns the stream, the extended cache, and auxiliary scalars (none here)."""
        key = inputs.dropout_key
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, index))
        # Norms and residuals may be cut along the sequence over tensor-parallel devices as well; matmuls see
        # whole sequences again (sequence parallelism, arXiv:2205.05198). Else both layouts are the same.
        between, inside = ("batch", "norm_seq", "embed"), ("batch", "seq", "embed")
        normed_BTD = checkpoint_name(constrain(self.attn_norm(x_BTD), inside), "attn_in")
        attn_BTD, cache = self.attn(normed_BTD, inputs.rotation, inputs.mask, cache)
        attn_BTD = constrain(attn_BTD, between)
        x_BTD = checkpoint_name(self._join(x_BTD, dropout(attn_BTD, self.dropout, attn_key)), "block_mid")
        normed_BTD = checkpoint_name(constrain(self.mlp_norm(x_BTD), inside), "mlp_in")
        mlp_BTD = constrain(self.mlp(normed_BTD), between)
        x_BTD = self._join(x_BTD, dropout(mlp_BTD, self.dropout, mlp_key))
        x_BTD = constrain(x_BTD, between)
        return checkpoint_name(x_BTD, "block_out"), cache, {}

    def _join(self, x_BTD: jax.Array, update_BTD: jax.Array) -> jax.Array:
        if self.left_spin is None:
            return x_BTD + update_BTD
        alpha, tau = self.left_spin
        return left_spin_residual(x_BTD, update_BTD, alpha=alpha, tau=tau)
