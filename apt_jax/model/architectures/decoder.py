"""The decoder every shipped architecture is a set of traits of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError
from apt_jax.core.logical import constrain
from apt_jax.model.api import AttentionKernel, AttentionMask, Cache, Controls, Hidden, make_mask
from apt_jax.model.architectures.block import Block, LayerInputs, Traits
from apt_jax.model.layers.attention import LayerCache, heads_of
from apt_jax.model.layers.dense import Dense
from apt_jax.model.layers.embedding import Embedding
from apt_jax.model.layers.kernels import BUILTIN, select_kernel
from apt_jax.model.layers.norm import RMSNorm
from apt_jax.model.layers.rope import make_rope
from apt_jax.model.layers.stack import RematPolicy, resolve_remat, run_layers, stack_layers

_KeysValues = tuple[jax.Array, jax.Array]  # k_LBSKH, v_LBSKH


class Decoder(nnx.Module):
    """Pre-norm decoder: RMSNorm, rotary positions, grouped queries, SwiGLU (arXiv:2302.13971).

    Fulfils `apt_jax.model.api.LanguageModel` and `StagedModel`. With all traits off it is Llama, with `qk_norm` Qwen3.

    Args:
      config: sizes and switches.
      vocab_size: rows of the table; `config.vocab_size` wins where given, and must not be smaller.
      rngs: only `params` is drawn from, and only here.
      traits: what the architecture switches on.
      kernels: attention kernels by name.
      dtype: of activations and matmuls; params are float32, as are softmax, norms and logits.

    Attributes:
      embed, layers, norm, head: the params; `head` is None when tied.
      kernel_name, kernel_reason: the attention kernel in use, and why, for the run header.
      remat_policy: name, or a `jax.checkpoint` policy put here instead.

    Raises:
      ModelError: sizes that do not fit together, or unknown names.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        rngs: nnx.Rngs,
        *,
        traits: Traits,
        kernels: Mapping[str, AttentionKernel] | None = None,
        dtype: Any = jnp.float32,
    ) -> None:
        _check_sizes(config, vocab_size)
        dtype = jnp.dtype(dtype)
        self.config = config
        self.vocab_size = config.vocab_size or vocab_size
        self.traits = traits
        self.dtype = dtype
        self.remat_policy: str | RematPolicy = config.remat_policy
        resolve_remat(config.remat_policy)  # a misspelt name is refused now, not when a step is traced
        self.kernel_name, self.kernel_reason, kernel = _kernel(config, {**BUILTIN, **(kernels or {})}, dtype)
        std = config.initializer_range
        self.embed = Embedding(self.vocab_size, config.hidden_size, std=std, dtype=dtype, rngs=rngs)
        self.layers = stack_layers(
            lambda rngs: Block(config, traits, kernel=kernel, dtype=dtype, rngs=rngs),
            config.num_layers,
            rngs.params(),
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = (
            None
            if config.tie_word_embeddings
            else Dense(
                config.hidden_size, self.vocab_size, axes=("embed", "vocab"), std=std, dtype=dtype, rngs=rngs
            )
        )

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        cache: Cache | None = None,
        controls: Controls | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Hidden:
        """Embeds, runs all layers, applies the final norm.

        Args:
          tokens_BT: int32.
          positions_BT: int32, position inside the document; None: continues the cache, or 0..T-1.
          segment_ids_BT: int32 document ids, 0 for padding; None: one document.
          cache: keys and values seen so far; the T tokens are appended.
          controls: curriculum values of this step.
          dropout_key: None switches dropout off.

        Raises:
          ModelError: more tokens than the cache has slots.
        """
        batch, length = tokens_BT.shape
        if cache is None:
            mask = make_mask((batch, length), positions_BT, segment_ids_BT, self.config.sliding_window)
            x_BTD, _, aux = self._run(self.begin(tokens_BT), mask, length, 0, controls, dropout_key)
            return self.finish(x_BTD, aux)
        mask, cache = _extend_mask(cache, (batch, length), positions_BT, segment_ids_BT, self.config)
        cached = (cache.k_LBSKH, cache.v_LBSKH), cache.index
        x_BTD, kv, aux = self._run(self.begin(tokens_BT), mask, cache.length, 0, controls, dropout_key, cached)
        assert kv is not None
        cache = cache.replace(  # pyright: ignore[reportAttributeAccessIssue]
            k_LBSKH=kv[0], v_LBSKH=kv[1], index=cache.index + length
        )
        return Hidden(self.finish(x_BTD, aux).x_BTD, cache, aux)

    def begin(self, tokens_BT: jax.Array) -> jax.Array:
        """x_BTD before the first layer."""
        return constrain(self.embed(tokens_BT), ("batch", "norm_seq", "embed"))

    def advance(
        self,
        x_BTD: jax.Array,
        first_layer: int | jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        controls: Controls | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Runs the layers that this module holds; the first of them is layer `first_layer` of the model.

        Returns x_BTD and the auxiliary scalars, summed over these layers.
        """
        shape_BT = x_BTD.shape[0], x_BTD.shape[1]
        mask = make_mask(shape_BT, positions_BT, segment_ids_BT, self.config.sliding_window)
        x_BTD, _, aux = self._run(x_BTD, mask, shape_BT[1], first_layer, controls, dropout_key)
        return x_BTD, aux

    def finish(self, x_BTD: jax.Array, aux: Mapping[str, jax.Array]) -> Hidden:
        """The final norm, after the last layer; `aux` is summed over all layers."""
        return Hidden(constrain(self.norm(x_BTD), ("batch", "seq", "embed")), None, aux)

    def _run(
        self,
        x_BTD: jax.Array,
        mask: AttentionMask,
        length: int,
        first_layer: int | jax.Array,
        controls: Controls | None,
        dropout_key: jax.Array | None,
        cached: tuple[_KeysValues, jax.Array] | None = None,
    ) -> tuple[jax.Array, _KeysValues | None, Mapping[str, jax.Array]]:
        """All layers held; `cached` is (keys and values, next free slot)."""
        rope = make_rope(self.config, length)
        # Without packing one row of angles serves the whole batch.
        positions = mask.q_positions_BT if mask.packed else mask.q_positions_BT[:1]
        inputs = LayerInputs(rope.rotation(positions), mask, controls or {}, dropout_key)

        def apply(layer: Block, index: jax.Array, carry: Any) -> Any:
            x_BTD, kv = carry
            layer_cache = None
            if cached is not None:
                layer_cache = LayerCache(k_LBSKH=kv[0], v_LBSKH=kv[1], layer=index, index=cached[1])
            x_BTD, layer_cache, aux = layer(x_BTD, inputs, first_layer + index, layer_cache)
            return (x_BTD, None if layer_cache is None else (layer_cache.k_LBSKH, layer_cache.v_LBSKH)), aux

        (x_BTD, kv), aux = run_layers(
            self.layers,
            apply,
            (x_BTD, None if cached is None else cached[0]),
            scan=self.config.scan_layers,
            remat=self.remat_policy,
            first=first_layer,
        )
        return x_BTD, kv, aux

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """logits_BTV, float32, soft cap applied."""
        dot = jax.lax.dot_general if self.head is None else self.head.dot_general
        contract: Any = (((x_BTD.ndim - 1,), (0,)), ((), ()))
        logits_BTV = dot(
            x_BTD.astype(self.dtype), self.head_matrix(), contract, preferred_element_type=jnp.float32
        )
        cap = self.config.logit_softcap
        if cap is not None:
            logits_BTV = cap * jnp.tanh(logits_BTV / cap)
        return constrain(logits_BTV, ("batch", "seq", "vocab"))

    def head_matrix(self) -> jax.Array:
        """w_DV in compute dtype."""
        if self.head is None:
            return self.embed.table[...].astype(self.dtype).T
        return self.head.kernel[...].astype(self.dtype)

    def __call__(self, tokens_BT: jax.Array, **kwargs: Any) -> jax.Array:
        """logits_BTV, float32; arguments as `hidden`."""
        return self.unembed(self.hidden(tokens_BT, **kwargs).x_BTD)

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens each, in compute dtype."""
        _, kv_heads, head_dim = heads_of(self.config)
        kv = jnp.zeros((self.config.num_layers, batch, length, kv_heads, head_dim), self.dtype)
        positions = jnp.full((batch, length), -1, jnp.int32)
        return Cache(kv, kv, positions, jnp.zeros((batch, length), jnp.int32), jnp.int32(0))


def _kernel(
    config: ModelConfig, available: Mapping[str, AttentionKernel], dtype: jnp.dtype
) -> tuple[str, str, AttentionKernel]:
    """(name, reason, kernel). A kernel asked for by name may still refuse packed batches when it meets one."""
    name, reason = select_kernel(
        config.attention_kernel,
        jax.default_backend(),
        dtype=dtype,
        head_dim=heads_of(config)[2],
        packed=config.attention_kernel == "auto",
        available=available,
    )
    return name, reason, available[name]


def _extend_mask(
    cache: Cache,
    shape_BT: tuple[int, int],
    positions_BT: jax.Array | None,
    segment_ids_BT: jax.Array | None,
    config: ModelConfig,
) -> tuple[AttentionMask, Cache]:
    """Enters the new tokens' positions and segments into the cache; the mask is against all its slots."""
    if shape_BT[1] > cache.length:
        raise ModelError(
            f"cache: {shape_BT[1]} tokens do not fit its {cache.length} slots; make a longer one"
        )
    new = make_mask(shape_BT, positions_BT, segment_ids_BT, config.sliding_window)
    q_positions = new.q_positions_BT if positions_BT is not None else new.q_positions_BT + cache.index
    positions = jax.lax.dynamic_update_slice(cache.positions_BS, q_positions, (0, cache.index))
    segments = jax.lax.dynamic_update_slice(cache.segment_ids_BS, new.q_segments_BT, (0, cache.index))
    cache = cache.replace(  # pyright: ignore[reportAttributeAccessIssue]
        positions_BS=positions, segment_ids_BS=segments
    )
    mask = AttentionMask(q_positions, positions, new.q_segments_BT, segments, window=config.sliding_window)
    return mask, cache


def _check_sizes(config: ModelConfig, vocab_size: int) -> None:
    heads, kv_heads, head_dim = heads_of(config)
    if config.head_dim is None and config.hidden_size % heads:
        raise ModelError(
            f"model.hidden_size: {config.hidden_size} is no multiple of num_attention_heads = {heads}; "
            "change one, or set model.head_dim"
        )
    if heads % kv_heads:
        raise ModelError(
            f"model.num_key_value_heads: {kv_heads} does not divide num_attention_heads = {heads}"
        )
    if head_dim % 2:
        raise ModelError(f"model.head_dim: {head_dim} is odd; rotary positions need pairs, use an even size")
    if config.vocab_size is not None and config.vocab_size < vocab_size:
        raise ModelError(
            f"model.vocab_size: {config.vocab_size} is smaller than the tokenizer's {vocab_size}; "
            "raise it, or leave it unset"
        )
    make_rope(config, config.max_position_embeddings)
