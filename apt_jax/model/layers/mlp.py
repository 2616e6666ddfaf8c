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
        hidden_BTF = constrain(silu_product(gate_BTF, up_BTF), ("batch", "seq", "mlp"))
        return self.down(checkpoint_name(hidden_BTF, "mlp_hidden"))


@jax.custom_vjp
def silu_product(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up.

    The backward pass keeps the two arguments only; autodiff would keep silu(gate) and its sigmoid as well,
    two more [B, T, F] per layer.
    """
    return jax.nn.silu(gate) * up


def _silu_product_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return silu_product(gate, up), (gate, up)


def _silu_product_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gate, up = residuals
    gate32, up32, d32 = (x.astype(jnp.float32) for x in (gate, up, cotangent))
    sigmoid = jax.nn.sigmoid(gate32)
    silu = gate32 * sigmoid
    d_gate = d32 * up32 * (sigmoid + silu * (1.0 - sigmoid))
    return d_gate.astype(gate.dtype), (d32 * silu).astype(up.dtype)


silu_product.defvjp(_silu_product_forward, _silu_product_backward)
