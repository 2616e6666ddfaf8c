"""Model sizes by name, and counting parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from apt_jax.core.config.options import freeze
from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError, unknown_name

# The platform's sizes, its equal encoder and decoder depths added up to one decoder stack.
# Params beside the embedding, as architecture `apt`: 6.5 M, 52 M, 234 M, 831 M.
_SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_layers": 6},
    "small": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_layers": 12},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_layers": 24},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_layers": 48},
}


def create_config(size: str, **overrides: Any) -> ModelConfig:
    """A `ModelConfig` of size tiny, small, base or large, with `overrides` by key.

    Raises:
      ModelError: an unknown size or key.
    """
    if size not in _SIZES:
        raise ModelError(unknown_name("model size", size, _SIZES))
    return override(ModelConfig(max_position_embeddings=2048), {**_SIZES[size], **overrides})


def override(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """`config` with `changes`; raises ModelError for what is no key of it."""
    for key in changes:
        if key not in ModelConfig.__dataclass_fields__:
            raise ModelError(unknown_name("model setting", key, ModelConfig.__dataclass_fields__))
    return replace(config, **{key: freeze(value) for key, value in changes.items()})


def count_params(model: nnx.Module) -> int:
    """Number of parameters, a tied head counted once; the model may be abstract (`nnx.eval_shape`)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
