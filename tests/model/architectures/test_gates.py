"""What every registered architecture must satisfy; a new one is tested without being named here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from apt_jax.core.config.schema import ModelConfig, TrainingConfig
from apt_jax.core.registry import load_plugins
from apt_jax.model.losses import cross_entropy

VOCAB, B, T = 64, 2, 12
CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    # Larger than in training, so that every path through the model matters to its output.
    "initializer_range": 0.2,
}
# What any architecture has to honour. The fast cases take all of it at once.
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {"attention_bias": True, "sliding_window": 5, "logit_softcap": 5.0, "head_dim": 16},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": None},
}
ARCHITECTURES = load_plugins().registry("architectures")
CASES = [
    pytest.param(name, variant, marks=[pytest.mark.slow] if variant != "all" else [])
    for name in ARCHITECTURES
    for variant in VARIANTS
]
TOKENS = np.random.default_rng(1).integers(0, VOCAB, (B, T), dtype=np.int32)


def abstract(name: str, dtype: Any = jnp.float32, **settings: Any) -> Any:
    """A model without arrays; `nnx.merge(graphdef(it), params)` fills it without compiling an initialiser."""
    config = ModelConfig(architecture=name, **{**CONFIG, **settings})
    factory = ARCHITECTURES.resolve(name)
    return nnx.eval_shape(lambda: factory(config, VOCAB, nnx.Rngs(0), dtype=dtype))


@functools.cache
def model_of(name: str, variant: str) -> tuple[Any, Callable[..., jax.Array]]:
    """A model, and its compiled `tokens, positions, segments -> logits`."""
    config = ModelConfig(architecture=name, **{**CONFIG, **VARIANTS[variant]})
    model = ARCHITECTURES.resolve(name)(config, VOCAB, nnx.Rngs(0), dtype=jnp.float32)
    graphdef, params = nnx.split(model)

    @jax.jit
    def logits(tokens: jax.Array, positions: Any = None, segments: Any = None) -> jax.Array:
        return nnx.merge(graphdef, params)(tokens, positions_BT=positions, segment_ids_BT=segments)

    return model, logits


def like(model: Any, name: str, variant: str, **settings: Any) -> Any:
    """The same weights under other settings."""
    return nnx.merge(nnx.graphdef(abstract(name, **{**VARIANTS[variant], **settings})), nnx.state(model))


def batch() -> dict[str, Any]:
    mask = np.ones((B, T), np.float32)
    mask[:, -1] = 0
    return {"tokens": TOKENS, "targets": np.roll(TOKENS, -1, axis=1), "loss_mask": mask}


@functools.cache
def loss_and_grads(model: Any) -> tuple[jax.Array, Any]:
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            out = cross_entropy(nnx.merge(graphdef, params), batch(), config=TrainingConfig(loss_chunk=7))
            return out.loss_sum / out.weight_sum

        return jax.value_and_grad(loss)(params)

    value, grads = run(params)
    return value, nnx.to_pure_dict(grads)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_future_tokens_do_not_change_past_logits(name: str, variant: str) -> None:
    _, logits = model_of(name, variant)
    before = np.asarray(logits(TOKENS))
    for t in (1, T // 2, T - 1):
        changed = np.array(TOKENS)
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        after = np.asarray(logits(changed))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])  # to the last bit
        assert np.abs(after[:, t] - before[:, t]).max() > 1e-3


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_packed_documents_equal_separate_ones(name: str, variant: str) -> None:
    _, logits = model_of(name, variant)
    lengths = (5, 4)
    positions = np.array([[*range(5), *range(4), *range(3)]] * B)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3] * B)
    packed = np.asarray(logits(TOKENS, positions, segments))
    start = 0
    for length in lengths:
        # Alone in its row, in front of padding.
        alone = np.pad(TOKENS[:, start : start + length], [(0, 0), (0, T - length)])
        own = np.where(np.arange(T) < length, 1, 0)
        expected = np.asarray(logits(alone, np.tile(np.arange(T), (B, 1)), np.tile(own, (B, 1))))
        np.testing.assert_allclose(packed[:, start : start + length], expected[:, :length], atol=2e-5)
        start += length


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_parameter_of_every_layer_gets_a_gradient(name: str, variant: str) -> None:
    _, grads = loss_and_grads(model_of(name, variant)[0])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        layers = grad if path[0].key == "layers" else grad[None]
        size = np.abs(np.asarray(layers)).reshape(len(layers), -1).max(axis=1)
        assert np.isfinite(size).all() and (size > 1e-9).all(), f"{jax.tree_util.keystr(path)}: {size}"


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_cached_generation_equals_the_full_forward_pass(name: str, variant: str) -> None:
    model, logits = model_of(name, variant)
    graphdef, params = nnx.split(model)

    @jax.jit
    def step(tokens: jax.Array, cache: Any) -> Any:
        model = nnx.merge(graphdef, params)
        hidden = model.hidden(tokens, cache=cache)
        return model.unembed(hidden.x_BTD), hidden.cache

    out, cache = step(TOKENS[:, :6], model.init_cache(B, T + 3))
    outputs = [out]
    for t in range(6, T):
        out, cache = step(TOKENS[:, t : t + 1], cache)
        outputs.append(out)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), logits(TOKENS), atol=2e-5)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_unrolled_and_rematerialised_layers_give_the_same_gradient(name: str, variant: str) -> None:
    model, _ = model_of(name, variant)
    loss, grads = loss_and_grads(model)
    other = like(model, name, variant, scan_layers=False, remat_policy="attention")
    other_loss, other_grads = loss_and_grads(other)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other_grads, grads)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_bfloat16_stays_near_float32(name: str, variant: str) -> None:
    model, logits = model_of(name, variant)
    half = like(model, name, variant, dtype=jnp.bfloat16)
    expected = np.asarray(logits(TOKENS))
    got = np.asarray(nnx.jit(lambda m: m(TOKENS))(half))
    assert got.dtype == np.float32
    # 8 bits of mantissa through 2 layers: a few per cent of the logits' own spread.
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.05 * expected.std()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_params_are_float32_and_name_each_axis(name: str, variant: str) -> None:
    model, _ = model_of(name, variant)
    for path, param in nnx.to_flat_state(nnx.state(model)):
        axes = param.get_metadata("logical_axes")
        assert param.dtype == jnp.float32, path
        assert len(axes) == param.ndim, path
        assert (axes[:1] == ("layers",)) == (path[0] == "layers"), path
