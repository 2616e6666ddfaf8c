"""Compute dtype and fp16 loss scaling."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from apt_jax.trainops.engine.state import LossScale

_INITIAL_SCALE = 2.0**15
_GROWTH_INTERVAL = 1000  # finite steps before the scale is doubled
_MAX_SCALE = 2.0**24

DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}


def compute_dtype(name: str, platform: str) -> jnp.dtype:
    """The dtype of activations and matmuls; parameters stay fp32.

    Args:
      name: fp32, bf16, fp16, or auto: bf16 on accelerators and fp32 on CPU.
      platform: jax's name of the device kind.
    """
    if name == "auto":
        name = "fp32" if platform == "cpu" else "bf16"
    return jnp.dtype(DTYPES[name])


def initial_loss_scale(dtype: jnp.dtype) -> LossScale:
    """Starts at 2^15 for fp16 and at 1 for dtypes whose exponent range needs no scaling."""
    scale = _INITIAL_SCALE if dtype == jnp.float16 else 1.0
    return LossScale(jnp.float32(scale), jnp.int32(0))


def next_loss_scale(state: LossScale, finite: jax.Array) -> LossScale:
    """Halves the scale after a non-finite step and doubles it after 1000 finite ones."""
    grow = finite & (state.good_steps + 1 >= _GROWTH_INTERVAL)
    scale = jnp.where(finite, jnp.where(grow, state.scale * 2, state.scale), state.scale / 2)
    good = jnp.where(finite & ~grow, state.good_steps + 1, 0)
    return LossScale(jnp.clip(scale, 1.0, _MAX_SCALE), good)


def all_finite(tree: object) -> jax.Array:
    """True if no leaf holds NaN or Inf."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
