"""SwiGLU feed-forward layer (Shazeer, arXiv:2002.05202)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.logical import constrain
from apt_jax.model.layers.dense import Dense


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) · up(x)); `gate`, `up`: D -> F, `down`: F -> D."""

    def __init__(self, config: ModelConfig, *, out_std: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, hidden, std = config.hidden_size, config.intermediate_size, config.initializer_range
        self.gate = Dense(width, hidden, axes=("embed", "mlp"), std=std, dtype=dtype, rngs=rngs)
        self.up = Dense(width, hidden, axes=("embed", "mlp"), std=std, dtype=dtype, rngs=rngs)
        self.down = Dense(hidden, width, axes=("mlp", "embed"), std=out_std, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        gate_BTF = checkpoint_name(self.gate(x_BTD), "mlp_gate")
        up_BTF = checkpoint_name(self.up(x_BTD), "mlp_up")
        hidden_BTF = constrain(jax.nn.silu(gate_BTF) * up_BTF, ("batch", "seq", "mlp"))
        return self.down(hidden_BTF)
