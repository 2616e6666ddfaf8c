"""What the gates do not cover: construction, layout, mistakes, padding in the cache, dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError
from apt_jax.model.architectures import APTLargeModel, APTModel, count_params, create_config
from apt_jax.model.architectures.apt import apt
from apt_jax.model.architectures.llama import llama
from apt_jax.model.architectures.qwen3 import qwen3

CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24
)
PLAIN = replace(CONFIG, autopoietic=False, left_spin=False)
VOCAB = 32
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 6)).astype(np.int32)


def layout(factory: Any, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    model = nnx.eval_shape(lambda: factory(config, VOCAB, nnx.Rngs(0)))
    return {".".join(path): tuple(p.shape) for path, p in nnx.to_flat_state(nnx.state(model))}


def test_with_all_features_off_apt_is_llama() -> None:
    assert layout(apt, PLAIN) == layout(llama, replace(CONFIG, architecture="llama"))
    a, b = apt(PLAIN, VOCAB, nnx.Rngs(0)), llama(PLAIN, VOCAB, nnx.Rngs(0))
    np.testing.assert_array_equal(a(TOKENS), b(TOKENS))


def test_parameter_names() -> None:
    per_layer = {
        "attn_norm.scale": (16,),
        "attn.q.kernel": (16, 16),
        "attn.k.kernel": (16, 8),
        "attn.v.kernel": (16, 8),
        "attn.o.kernel": (16, 16),
        "mlp_norm.scale": (16,),
        "mlp.gate.kernel": (16, 24),
        "mlp.up.kernel": (16, 24),
        "mlp.down.kernel": (24, 16),
    }
    expected = {"embed.table": (VOCAB, 16), "norm.scale": (16,)}
    expected |= {f"layers.{name}": (2, *shape) for name, shape in per_layer.items()}
    assert layout(llama, CONFIG) == expected
    untied = layout(qwen3, replace(CONFIG, tie_word_embeddings=False, head_dim=8))
    assert untied["head.kernel"] == (16, VOCAB)
    assert untied["layers.attn.q_norm.scale"] == untied["layers.attn.k_norm.scale"] == (2, 8)
    assert untied["layers.attn.q.kernel"] == (2, 16, 32)
    branch = {k for k in layout(apt, CONFIG) if "autopoietic" in k}
    assert branch == {
        f"layers.attn.autopoietic.{name}"
        for name in ("gate.kernel", "gate.bias", "down.kernel", "up.kernel", "tau")
    }


@pytest.mark.parametrize(
    ("factory", "changes", "message"),
    [
        (llama, {"autopoietic": True}, "model.autopoietic: 'llama' has no such feature"),
        (qwen3, {"left_spin": True}, "model.left_spin: 'qwen3' has no such feature"),
        (llama, {"qk_norm": True}, "model.qk_norm: 'llama' has none"),
        (qwen3, {"qk_norm": False}, "model.qk_norm: 'qwen3' always has it"),
        (apt, {"hidden_size": 18}, "model.hidden_size: 18 is no multiple of num_attention_heads = 4"),
        (apt, {"num_key_value_heads": 3}, "model.num_key_value_heads: 3 does not divide"),
        (apt, {"head_dim": 5}, "model.head_dim: 5 is odd"),
        (apt, {"vocab_size": 30}, "model.vocab_size: 30 is smaller than the tokenizer's 32"),
        (apt, {"attention_kernel": "refrence"}, "unknown kernel 'refrence' (did you mean 'reference'?)"),
        (apt, {"rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' needs 'factor'"),
    ],
)
def test_mistakes_are_one_line_naming_the_key(factory: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        factory(replace(CONFIG, **changes), VOCAB, nnx.Rngs(0))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_larger_vocabulary_pads_the_table() -> None:
    assert layout(apt, replace(CONFIG, vocab_size=40))["embed.table"] == (40, 16)


def test_prompts_padded_on_the_left_generate_as_if_alone() -> None:
    model = llama(replace(CONFIG, initializer_range=0.3), VOCAB, nnx.Rngs(0))
    padding = 2
    segments = np.ones((2, 6), np.int32)
    segments[1, :padding] = 0
    positions = np.arange(6, dtype=np.int32)[None] - np.array([[0], [padding]], np.int32)
    hidden = model.hidden(
        TOKENS, positions_BT=jnp.maximum(positions, 0), segment_ids_BT=segments, cache=model.init_cache(2, 8)
    )
    step = model.hidden(
        TOKENS[:, :1],
        positions_BT=positions[:, -1:] + 1,
        segment_ids_BT=np.ones((2, 1), np.int32),
        cache=hidden.cache,
    )
    assert step.cache is not None
    assert int(step.cache.index) == 7
    for row, start in ((0, 0), (1, padding)):
        text = np.concatenate([TOKENS[row, start:], TOKENS[row, :1]])[None]
        np.testing.assert_allclose(model.unembed(step.x_BTD)[row, 0], model(text)[0, -1], atol=2e-5)


def test_a_full_cache_is_refused() -> None:
    model = llama(CONFIG, VOCAB, nnx.Rngs(0))
    with pytest.raises(ModelError, match="6 tokens do not fit its 4 slots"):
        model.hidden(TOKENS, cache=model.init_cache(2, 4))


def test_dropout_needs_a_key_and_differs_by_key() -> None:
    model = llama(replace(CONFIG, dropout=0.5, initializer_range=0.3), VOCAB, nnx.Rngs(0))

    @nnx.jit
    def logits(model: Any, key: Any = None) -> jax.Array:
        return model(TOKENS, dropout_key=key)

    plain = logits(model)
    np.testing.assert_array_equal(plain, logits(model))
    first, second = (logits(model, jax.random.key(i)) for i in range(2))
    np.testing.assert_array_equal(first, logits(model, jax.random.key(0)))
    assert not np.allclose(first, plain)
    assert not np.allclose(first, second)


def test_dense_layers_take_another_dot_general() -> None:
    model = llama(CONFIG, VOCAB, nnx.Rngs(0))
    seen = []

    def halved(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        seen.append(rhs.shape)
        return jax.lax.dot_general(lhs, rhs * 0.5, *args, **kwargs)

    before = model(TOKENS)
    for name in ("gate", "up", "down"):
        getattr(model.layers.mlp, name).dot_general = halved
    assert not np.allclose(model(TOKENS), before)
    assert seen == [(16, 24), (16, 24), (24, 16)]  # one body for all layers


def test_public_constructors() -> None:
    model = APTModel(
        CONFIG, vocab_size=VOCAB, num_layers=1, rope_scaling={"rope_type": "linear", "factor": 2.0}
    )
    assert model.config.num_layers == 1
    assert nnx.jit(lambda m: m(TOKENS))(model).shape == (2, 6, VOCAB)  # so its config is hashable
    with pytest.raises(ModelError, match=r"unknown model setting 'hiden_size' \(did you mean 'hidden_size'"):
        APTModel(hiden_size=8)
    large = nnx.eval_shape(lambda: APTLargeModel(hidden_size=2048, num_layers=32))
    assert count_params(large) == 1_576_667_680
    assert large.config.num_attention_heads == 16
    assert nnx.eval_shape(lambda: APTLargeModel(num_layers=2, vocab_size=100)).embed.table.shape == (
        100,
        2048,
    )


@pytest.mark.parametrize(
    ("size", "params"),
    [("tiny", 6_497_822), ("small", 51_967_084), ("base", 233_830_200), ("large", 831_359_792)],
)
def test_sizes(size: str, params: int) -> None:
    assert count_params(nnx.eval_shape(lambda: APTModel(create_config(size), vocab_size=1))) == params


def test_count_params_counts_a_tied_head_once() -> None:
    tied, untied = (
        nnx.eval_shape(lambda t=t: llama(replace(CONFIG, tie_word_embeddings=t), VOCAB, nnx.Rngs(0)))
        for t in (True, False)
    )
    assert count_params(untied) - count_params(tied) == 16 * VOCAB
    with pytest.raises(ModelError, match=r"unknown model size 'tinny' \(did you mean 'tiny'"):
        create_config("tinny")
