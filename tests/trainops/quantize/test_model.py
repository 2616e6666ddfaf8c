"""Models with stored weights compute what their float twins do, and do not hold the float weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from apt_jax.model.build import build_model
from apt_jax.model.generation import GenerationConfig, Generator
from apt_jax.trainops.quantize.model import model_bytes
from apt_jax.trainops.quantize.report import weight_report
from apt_jax.vgpu.quant.formats import NVFP4, Int8, UInt4
from apt_jax.vgpu.quant.stored import quantize_params
from tests.trainops.quantize.tiny import (
    PLUGINS,
    TOKENS,
    VOCAB,
    config_of,
    decoded,
    logits,
    make,
    quantized,
    stored_weights,
)

FORMATS = [NVFP4(), UInt4(), Int8()]  # two scales, a zero point, whole bytes
SOME = "layers/attn/[qo]|layers/mlp/down"


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_logits_are_those_of_fake_quantised_weights(fmt):
    model = quantized(fmt)
    want = logits(decoded(model))
    np.testing.assert_allclose(logits(model), want, rtol=0, atol=1e-6 * np.abs(want).max())
    plain = logits(make(config_of()))
    assert np.abs(plain - want).max() > 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [
        (SOME, {"scan_layers": False}),
        (SOME, {"remat_policy": "full", "architecture": "apt"}),
        (f"head|{SOME}", {"tie_word_embeddings": False, "architecture": "qwen3"}),
    ],
)
def test_every_way_to_run_the_layers_takes_them(pattern, sizes):
    model = quantized("mxfp4", pattern, **sizes)
    want = logits(decoded(model))
    np.testing.assert_allclose(logits(model), want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_generation_says_what_the_float_twin_says():
    model = quantized("nvfp4")
    prompts, greedy = TOKENS[:, :5].tolist(), GenerationConfig(max_new_tokens=12)
    answers = Generator(model)(prompts, greedy)
    assert answers == Generator(decoded(model))(prompts, greedy)
    assert answers != Generator(make(config_of()))(prompts, greedy)


@pytest.mark.parametrize(("name", "most"), [("nvfp4", 4.5), ("mxfp4", 4.25), ("int4", 4.25), ("nf4", 4.25)])
def test_the_state_holds_codes_and_no_float_weights(name, most):
    """A tensor scale, where there is one, is 32 bits for a whole weight matrix."""
    before, after = make(config_of()), quantized(name)
    weights = stored_weights(after)
    assert len(weights) == 7
    values = sum(q.size for q in weights)
    scales = sum(4 * q.shape[0] for q in weights if q.tensor_scale is not None)
    assert model_bytes(before) - model_bytes(after) == 4 * values - sum(q.nbytes for q in weights)
    assert 8 * (sum(q.nbytes for q in weights) - scales) <= most * values
    floats = [leaf for leaf in jax.tree.leaves(nnx.state(after)) if leaf.dtype == jnp.float32]
    assert max(leaf.size for leaf in floats) <= 64 * 64  # the embedding; the smallest weight has 2 x 64 x 32
    assert sum(leaf.size for leaf in floats) < 64 * 64 + 1000
    report = weight_report(before, after, "rtn")
    assert report.bits == 8 * sum(q.nbytes for q in weights) / values
    assert report.stored_bytes[0] == 4 * values and len(report.groups) == 7
    assert all(0.05 < group.relative_error < 0.15 for group in report.groups)


def test_one_layer_is_decoded_at_a_time():
    """By XLA's own count of temporaries, in a model of which one layer is a sixteenth; only compiled."""
    config = config_of(hidden_size=128, intermediate_size=512, num_layers=16)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build_model(config, VOCAB, PLUGINS)))
    floats = nnx.to_pure_dict(state)
    stored = jax.eval_shape(lambda params: quantize_params(params, [("layers/.*", "nvfp4")], PLUGINS), floats)

    def run(params, tokens):
        return nnx.merge(graphdef, params)(tokens)

    layer = sum(leaf.size * 4 for leaf in jax.tree.leaves(floats["layers"])) / 16
    memory = jax.jit(run).lower(stored, TOKENS).compile().memory_analysis()
    assert memory.argument_size_in_bytes < 16 * layer * 4.6 / 32 + 4 * 64 * 128 + 16_000  # embedding and norms
    assert memory.temp_size_in_bytes < 2.5 * layer
