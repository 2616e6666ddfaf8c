"""APT: the decoder with the autopoietic branch and the left-spin residual, unless switched off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.model.api import AttentionKernel
from apt_jax.model.architectures.block import Traits
from apt_jax.model.architectures.decoder import Decoder
from apt_jax.model.architectures.presets import override

_DEFAULT_VOCAB_SIZE = 32_000


def apt_traits(config: ModelConfig) -> Traits:
    """The config's switches, the platform features being on where it says nothing."""
    return Traits(
        qk_norm=bool(config.qk_norm),
        autopoietic=config.autopoietic is not False,
        left_spin=config.left_spin is not False,
    )


def apt(
    config: ModelConfig,
    vocab_size: int,
    rngs: nnx.Rngs,
    *,
    kernels: Mapping[str, AttentionKernel] | None = None,
    dtype: Any = jnp.float32,
) -> Decoder:
    """Architecture factory. With every feature off it has Llama's params, name by name."""
    return Decoder(config, vocab_size, rngs, traits=apt_traits(config), kernels=kernels, dtype=dtype)


class APTModel(Decoder):
    """An APT decoder from a `ModelConfig`, keyword arguments, or both (the latter win).

    Args:
      config: defaults to `ModelConfig()`.
      vocab_size: rows of the embedding; defaults to the config's, or 32,000.
      seed: of the weights.
      dtype: compute dtype.
      **overrides: keys of `ModelConfig`.

    `nnx.eval_shape(lambda: APTModel(...))` builds it without allocating anything.
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        vocab_size: int | None = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        **overrides: Any,
    ) -> None:
        config = override(config or ModelConfig(), overrides)
        size = vocab_size or config.vocab_size or _DEFAULT_VOCAB_SIZE
        super().__init__(config, size, nnx.Rngs(seed), traits=apt_traits(config), dtype=dtype)


class APTLargeModel(APTModel):
    """APT with heads of 128, four queries per key/value head and F = 8/3 D; 1.6 billion params by default."""

    def __init__(self, hidden_size: int = 2048, num_layers: int = 32, **kwargs: Any) -> None:
        heads = max(1, hidden_size // 128)
        derived: dict[str, Any] = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 4 if heads % 4 == 0 else heads,
            "intermediate_size": 256 * -(-8 * hidden_size // (3 * 256)),
            "max_position_embeddings": 4096,
        }
        super().__init__(hidden_size=hidden_size, num_layers=num_layers, **{**derived, **kwargs})
