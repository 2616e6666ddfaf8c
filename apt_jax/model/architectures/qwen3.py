"""Qwen3: Llama with RMSNorm on queries and keys (Yang et al., arXiv:2505.09388)."""

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
from apt_jax.model.architectures.llama import refuse_features


def qwen3(
    config: ModelConfig,
    vocab_size: int,
    rngs: nnx.Rngs,
    *,
    kernels: Mapping[str, AttentionKernel] | None = None,
    dtype: Any = jnp.float32,
) -> Decoder:
    """Architecture factory; raises ModelError for a switch that would make it something else."""
    refuse_features(config, "qwen3")
    if config.qk_norm is False:
        raise ModelError("model.qk_norm: 'qwen3' always has it; leave it unset, or use architecture 'llama'")
    return Decoder(config, vocab_size, rngs, traits=Traits(qk_norm=True), kernels=kernels, dtype=dtype)
