"""Each sampling setting against transformers' own logits processors and plain numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.errors import ConfigError
from apt_jax.model.generation import GenerationConfig, from_hf
from apt_jax.model.generation.sampling import Sampling, filter_logits, next_token, penalize_repetition

torch = pytest.importorskip("torch", reason="pip install apt-jax[parity]")
theirs = pytest.importorskip("transformers.generation.logits_process", reason="pip install apt-jax[parity]")

B, V = 4, 97


@pytest.fixture
def logits_BV() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (B, V)).astype(np.float32)


def filtered(logits_BV: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    return np.asarray(filter_logits(jnp.asarray(logits_BV), jnp.int32(top_k), jnp.float32(top_p)))


@pytest.mark.parametrize("k", [1, 5, V, V + 50])
def test_top_k_is_that_of_transformers(logits_BV, k):
    expected = theirs.TopKLogitsWarper(k)(None, torch.tensor(logits_BV)).numpy()
    np.testing.assert_array_equal(filtered(logits_BV, k, 1.0), expected)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_is_that_of_transformers(logits_BV, p):
    expected = theirs.TopPLogitsWarper(p)(None, torch.tensor(logits_BV)).numpy()
    np.testing.assert_array_equal(filtered(logits_BV, 0, p), expected)
    assert (filtered(logits_BV, 0, p).max(-1) == logits_BV.max(-1)).all()


def test_top_k_then_top_p(logits_BV):
    expected = theirs.TopPLogitsWarper(0.8)(
        None, theirs.TopKLogitsWarper(10)(None, torch.tensor(logits_BV))
    ).numpy()
    np.testing.assert_array_equal(filtered(logits_BV, 10, 0.8), expected)


def test_repetition_penalty_is_that_of_transformers(logits_BV):
    ids_BT = np.random.default_rng(1).integers(0, V, (B, 12))
    seen_BV = np.zeros((B, V), bool)
    np.put_along_axis(seen_BV, ids_BT, True, axis=1)
    expected = theirs.RepetitionPenaltyLogitsProcessor(1.7)(
        torch.tensor(ids_BT), torch.tensor(logits_BV)
    ).numpy()
    actual = penalize_repetition(jnp.asarray(logits_BV), jnp.asarray(seen_BV), jnp.float32(1.7))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@jax.jit
def _draw(logits_BV, steps, sampling):
    seen_BV = jnp.zeros(logits_BV.shape, bool)
    return jax.vmap(lambda step: next_token(logits_BV, seen_BV, step, sampling))(steps)


def draw(logits_BV: np.ndarray, count: int, **settings) -> np.ndarray:
    return np.asarray(_draw(logits_BV, np.arange(count), Sampling.of(GenerationConfig(**settings))))


def test_zero_temperature_is_argmax(logits_BV):
    assert (draw(logits_BV, 50, temperature=0.0) == logits_BV.argmax(-1)).all()


def test_samples_follow_the_tempered_filtered_distribution(logits_BV):
    temperature, count = 1.5, 20_000
    samples = draw(logits_BV, count, temperature=temperature, top_k=6, top_p=0.95)
    warped = theirs.TopPLogitsWarper(0.95)(
        None, theirs.TopKLogitsWarper(6)(None, torch.tensor(logits_BV / temperature))
    )
    expected_BV = torch.softmax(warped, -1).numpy()
    for row in range(B):
        frequency_V = np.bincount(samples[:, row], minlength=V) / count
        error_V = np.sqrt(expected_BV[row] * (1 - expected_BV[row]) / count)
        assert (np.abs(frequency_V - expected_BV[row]) <= 5 * error_V).all()  # exactly 0 outside the filter


def test_rows_and_seeds_draw_differently_but_reproducibly(logits_BV):
    same_BV = np.repeat(logits_BV[:1], B, axis=0)
    first = draw(same_BV, 50, temperature=1.0, seed=1)
    assert (first == draw(same_BV, 50, temperature=1.0, seed=1)).all()
    assert (first != draw(same_BV, 50, temperature=1.0, seed=2)).any()
    assert len({tuple(column) for column in first.T}) == B
    assert (first[:, :2] == draw(same_BV[:2], 50, temperature=1.0, seed=1)).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", 0.0),
        ("stop_tokens", (-1,)),
        ("stop_strings", ("",)),
        ("seed", -1),
    ],
)
def test_a_wrong_setting_is_named(key, value):
    with pytest.raises(ConfigError, match=rf"^{key}=.*: must be "):
        GenerationConfig(**{key: value})


def test_settings_of_a_published_model():
    raw = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [7, 8]}
    assert from_hf(raw, eos_id=9, seed=3) == GenerationConfig(
        temperature=0.6, top_k=20, top_p=0.95, stop_tokens=(7, 8, 9), seed=3
    )
    greedy = from_hf({"temperature": 0.6, "eos_token_id": 7}, top_p=0.5)
    assert greedy == GenerationConfig(stop_tokens=(7,), top_p=0.5)
