"""From logits to the next token; every setting is an array, so changing one compiles nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from apt_jax.model.generation.config import GenerationConfig


@struct.dataclass
class Sampling:
    """`GenerationConfig` as scalars on the device; `stop_tokens` is padded with -1."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array
    stop_tokens: jax.Array
    seed: jax.Array

    @classmethod
    def of(cls, config: GenerationConfig) -> Sampling:
        stops = config.stop_tokens
        slots = max(8, 1 << (len(stops) - 1).bit_length()) if stops else 8  # few shapes, few compilations
        host = (
            np.float32(config.temperature),
            np.int32(config.top_k),
            np.float32(config.top_p),
            np.float32(config.repetition_penalty),
            np.array([*stops, *[-1] * (slots - len(stops))], np.int32),
            np.uint32(config.seed),
        )
        return cls(*jax.device_put(host))  # explicit, so that a transfer guard around the caller is content


def penalize_repetition(logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array) -> jax.Array:
    """Pulls the logits of seen tokens down: positive ones are divided by the penalty, negative multiplied."""
    penalized_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, penalized_BV, logits_BV)


def filter_logits(logits_BV: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """-inf for tokens outside the k most likely, then outside the nucleus of mass p; ties are kept.

    Nucleus: Holtzman et al., arXiv:1904.09751. The most likely token always stays.
    """
    vocab_size = logits_BV.shape[-1]
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    k = jnp.where(top_k > 0, jnp.minimum(top_k, vocab_size), vocab_size)
    kth_B1 = jnp.take(sorted_BV, jnp.array([k - 1]), axis=-1)
    sorted_BV = jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    mass_before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    inside_BV = (mass_before_BV < top_p) & (sorted_BV > -jnp.inf)
    least_B1 = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def next_token(logits_BV: jax.Array, seen_BV: jax.Array, step: jax.Array, sampling: Sampling) -> jax.Array:
    """int32 [B]: the token after this step's logits (float32)."""
    logits_BV = penalize_repetition(logits_BV, seen_BV, sampling.repetition_penalty)

    def greedy() -> jax.Array:
        return jnp.argmax(logits_BV, axis=-1)

    def sample() -> jax.Array:
        scaled_BV = logits_BV / sampling.temperature
        filters = (sampling.top_k > 0) | (sampling.top_p < 1)
        # Sorting a large vocabulary costs more than a small model's step: only when asked for.
        scaled_BV = jax.lax.cond(
            filters, lambda: filter_logits(scaled_BV, sampling.top_k, sampling.top_p), lambda: scaled_BV
        )
        key = jax.random.fold_in(jax.random.key(sampling.seed), step)
        keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits_BV.shape[0]))
        return jax.vmap(jax.random.categorical)(keys_B, scaled_BV)

    return jax.lax.cond(sampling.temperature == 0, greedy, sample).astype(jnp.int32)
