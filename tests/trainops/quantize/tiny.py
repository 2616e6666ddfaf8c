"""Small models with stored weights, and the same with float weights of equal value."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from apt_jax.core.config import Config
from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.registry import load_plugins
from apt_jax.model.build import build_model
from apt_jax.trainops.quantize import quantize_model
from apt_jax.vgpu.quant import Format, QTensor

PLUGINS = load_plugins(disabled=("*",))
VOCAB = 64
SIZES: dict[str, Any] = {
    "architecture": "llama",
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
TOKENS = np.arange(24).reshape(2, 12) * 7 % VOCAB


def config_of(**sizes: Any) -> Config:
    return Config(model=ModelConfig(**{**SIZES, **sizes}))


@functools.cache
def make(config: Config) -> Any:
    return build_model(config, VOCAB, PLUGINS, seed=1)


@functools.cache
def quantized(format: Format | str, pattern: str = "layers/.*", method: str = "rtn", **sizes: Any) -> Any:
    return quantize_model(make(config_of(**sizes)), [(pattern, format)], PLUGINS, method=method)


def decoded(model: Any) -> Any:
    """The model whose float weights are what the stored ones stand for."""
    graphdef, state = nnx.split(model)
    params = jax.tree.map(
        lambda leaf: leaf.dequantize() if isinstance(leaf, QTensor) else leaf,
        nnx.to_pure_dict(state),
        is_leaf=lambda leaf: isinstance(leaf, QTensor),
    )
    return nnx.merge(graphdef, params)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef: Any, state: Any, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, state)(tokens)


def logits(model: Any) -> np.ndarray:
    graphdef, state = nnx.split(model)
    return np.asarray(_logits(graphdef, state, jnp.asarray(TOKENS)))


def stored_weights(model: Any) -> list[QTensor]:
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)), is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return [leaf for leaf in leaves if isinstance(leaf, QTensor)]
