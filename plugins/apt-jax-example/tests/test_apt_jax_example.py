from __future__ import annotations

import json
import math
from types import SimpleNamespace

import apt_jax_example
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from apt_jax import load_plugins
from apt_jax.core.config import validate
from apt_jax.core.config.schema import ModelConfig
from apt_jax.model.api import Hidden

PLUGINS = load_plugins(disabled=["*"], extra={"example-under-test": apt_jax_example})
CONFIG = ModelConfig(hidden_size=16, num_layers=1, num_attention_heads=2, intermediate_size=32)


@pytest.fixture
def model():
    return PLUGINS.registry("architectures").resolve("example_gated")(CONFIG, 32, nnx.Rngs(0))


def test_the_gate_begins_as_the_identity_and_learns(model):
    tokens_BT = jnp.arange(8)[None]
    plain = PLUGINS.registry("architectures").resolve("llama")(CONFIG, 32, nnx.Rngs(0))
    assert jnp.array_equal(model(tokens_BT), plain(tokens_BT))
    graph, params = nnx.split(model)
    gradient = jax.grad(lambda p: jnp.square(nnx.merge(graph, p)(tokens_BT)).sum())(params)
    assert jnp.all(gradient["gate"][...] != 0)


def test_penalty_is_minus_the_entropy_of_the_counted_tokens(model):
    config = validate({"extensions": {"example": {"confidence_penalty": 0.5}}})
    term = PLUGINS.transform("apt_loss_terms", config=config)["confidence_penalty"]
    uniform = Hidden(jnp.zeros((1, 4, 16)))  # zero states give equal logits
    value = term(model, uniform, {"loss_mask": jnp.array([[1.0, 1.0, 1.0, 0.0]])}, {})
    assert float(value) == pytest.approx(-0.5 * 3 * math.log(32), rel=1e-6)
    assert PLUGINS.transform("apt_loss_terms", config=validate({})) == {}


def test_observer_writes_its_summary(tmp_path):
    run = SimpleNamespace(workdir=tmp_path, start_step=0)
    for step, loss in enumerate([3.0, 1.0, 2.0], start=1):
        PLUGINS.observe("apt_step_end", run=run, step=step, metrics={"loss": loss})
    PLUGINS.observe("apt_train_end", run=run, report={})
    assert json.loads((tmp_path / "example.json").read_text()) == {"steps": 3, "lowest": 1.0}
    assert not PLUGINS.dropped
