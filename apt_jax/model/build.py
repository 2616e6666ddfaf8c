"""A model from its config: the registered architecture, plugins' kernels, and their transforms."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.core.config.schema import Config

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


def build_model(
    config: Config, vocab_size: int, plugins: Plugins, *, dtype: Any = jnp.float32, seed: int | None = None
) -> nnx.Module:
    """Builds and initialises the model of `config.model`; fulfils `apt_jax.model.api.LanguageModel`.

    `nnx.eval_shape(lambda: build_model(...))` gives it without allocating anything.

    Args:
      config: the whole config; plugins' transforms may read all of it.
      vocab_size: size of the tokenizer; `config.model.vocab_size` may be larger.
      plugins: registries and transforms.
      dtype: of activations and matmuls; parameters are float32.
      seed: of the weights; default `config.training.seed`.

    Raises:
      PluginError: an unknown architecture, or a transform that failed.
      ModelError: sizes that do not fit together.
    """
    registered = plugins.registry("attention_kernels")
    kernels = {name: registered.resolve(name) for name in registered}
    key = jax.random.key(config.training.seed if seed is None else seed)
    sizes = config.model
    policy = plugins.transform("apt_remat_policy", name=sizes.remat_policy)
    if policy is not None:  # a plugin's own: the architecture knows names only
        sizes = replace(sizes, remat_policy="none")
    model = plugins.registry("architectures").make(
        sizes.architecture,
        sizes,
        vocab_size,
        nnx.Rngs(key),
        key="model.architecture",
        kernels=kernels,
        dtype=jnp.dtype(dtype),
    )
    if policy is not None:
        model.remat_policy = policy
    return plugins.transform("apt_transform_model", model, config=config, plugins=plugins)
