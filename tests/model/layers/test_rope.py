"""Rotary embeddings against transformers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError
from apt_jax.model.layers.rope import Rope, apply_rope, make_rope

HEAD_DIM, MAX = 16, 64
SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [1.0 + 1.5 * i for i in range(8)]
ORIGINAL = {"original_max_position_embeddings": 32}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16, "beta_slow": 2, "truncate": False, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 1.5, "mscale_all_dim": 0.8, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25},
    {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, **ORIGINAL},
    {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 4.0, **ORIGINAL},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
]


def config(scaling: dict[str, Any] | None, theta: float = 10_000.0) -> ModelConfig:
    return ModelConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=MAX,
        rope_theta=theta,
        rope_scaling=scaling,
    )


@pytest.mark.parametrize("theta", [100.0, 500_000.0])
@pytest.mark.parametrize("length", [16, 40, 200])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: "-".join(map(str, list(s.values())[:2]))[:20])
def test_frequencies_equal_transformers(scaling: dict[str, Any], length: int, theta: float) -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    hf = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=MAX,
        rope_theta=theta,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    inv_freq, factor = utils.ROPE_INIT_FUNCTIONS[scaling["rope_type"]](hf, "cpu", seq_len=length)
    rope = make_rope(config(scaling, theta), length)
    np.testing.assert_allclose(rope.inv_freq, inv_freq.numpy(), rtol=2e-6)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-12)


def test_default_is_the_paper() -> None:
    expected = [10_000.0 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)]
    assert make_rope(config(None), 8) == Rope(tuple(expected))
    assert make_rope(config({"rope_type": "default"}), 8) == make_rope(config(None), 8)


def test_only_dynamic_and_longrope_depend_on_the_length() -> None:
    changing = {s["rope_type"] for s in SCALINGS if make_rope(config(s), 16) != make_rope(config(s), 200)}
    assert changing == {"dynamic", "longrope"}


def test_rotation_turns_halves_and_keeps_relative_positions() -> None:
    rope = Rope((1.0, 0.25))
    x = np.random.default_rng(0).normal(size=(1, 2, 1, 4)).astype(np.float32)

    def score(q_position: int, k_position: int) -> float:
        rotated = apply_rope(jnp.asarray(x), rope.rotation(jnp.array([[q_position, k_position]])))
        return float(jnp.sum(rotated[0, 0] * rotated[0, 1]))

    assert score(7, 3) == pytest.approx(score(14, 10), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    turned = np.asarray(apply_rope(jnp.asarray(x), rope.rotation(jnp.array([[0, 1]]))))
    np.testing.assert_allclose(turned[0, 0], x[0, 0], atol=1e-6)
    a, b = x[0, 1, 0, 0], x[0, 1, 0, 2]  # dimension 0 pairs with 0 + H/2
    assert turned[0, 1, 0, 0] == pytest.approx(a * np.cos(1) - b * np.sin(1), abs=1e-5)


def test_attention_factor_scales_the_rotation() -> None:
    plain, scaled = Rope((1.0,)).rotation(jnp.array([[2]])), Rope((1.0,), 1.5).rotation(jnp.array([[2]]))
    np.testing.assert_allclose(scaled[0], 1.5 * plain[0], rtol=1e-6)
    np.testing.assert_allclose(scaled[1], 1.5 * plain[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarm", "factor": 2.0}, "unknown rope_type 'yarm' (did you mean 'yarn'?)"),
        ({"rope_type": "linear"}, "rope_type 'linear' needs 'factor'"),
        (
            {"rope_type": "linear", "facto": 2.0},
            "'facto' is no key of rope_type 'linear' (did you mean 'factor'?)",
        ),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": LONG},
            "'short_factor' has 1 entries, but head_dim / 2 = 8",
        ),
    ],
)
def test_mistakes_are_named(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        make_rope(config(scaling), 16)
    assert str(error.value).startswith("model.rope_scaling: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
