"""Llama: the decoder with every platform feature off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError
from apt_jax.model.api import AttentionKernel
from apt_jax.model.architectures.block import Traits
from apt_jax.model.architectures.decoder import Decoder


def llama(
    config: ModelConfig,
    vocab_size: int,
    rngs: nnx.Rngs,
    *,
    kernels: Mapping[str, AttentionKernel] | None = None,
    dtype: Any = jnp.float32,
) -> Decoder:
    """Architecture factory; raises ModelError for a switch that would make it something else."""
    refuse_features(config, "llama")
    if config.qk_norm:
        raise ModelError(
            "model.qk_norm: 'llama' has none; leave it unset, or use architecture 'qwen3' or 'apt'"
        )
    return Decoder(config, vocab_size, rngs, traits=Traits(), kernels=kernels, dtype=dtype)


def refuse_features(config: ModelConfig, architecture: str) -> None:
    """Raises ModelError where a platform feature is switched on for an architecture that lacks it."""
    for key in ("autopoietic", "left_spin"):
        if getattr(config, key):
            raise ModelError(
                f"model.{key}: '{architecture}' has no such feature; leave it unset, or use 'apt'"
            )
