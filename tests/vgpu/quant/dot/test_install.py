"""Which layers rules reach, and what is said of the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ConfigError
from apt_jax.core.registry import load_plugins
from apt_jax.model.architectures.llama import llama
from apt_jax.vgpu.quant import FormatError
from apt_jax.vgpu.quant.dot import QuantizedDot, QuantizedEinsum, find_recipe, install
from tests.trainops.engine.tiny import MODEL, VOCAB

PLUGINS = load_plugins(disabled=("*",))
PROJECTIONS = [f"layers/attn/{name}" for name in "koqv"] + [f"layers/mlp/{name}" for name in ("down", "gate", "up")]


def tiny(**changes) -> nnx.Module:
    config = ModelConfig(**{**MODEL.__dict__, **changes})
    return nnx.eval_shape(lambda: llama(config, VOCAB, nnx.Rngs(0)))


def test_first_match_wins_and_all_is_accounted_for():
    model = tiny(tie_word_embeddings=False)
    found = install(model, [("layers/mlp/down", None), ("layers/mlp/.*", "mxfp8"), ("layers/.*", "nvfp4")])
    assert {path: recipe.name for path, recipe in found.installed} == {
        **{path: "nvfp4" for path in PROJECTIONS if "attn" in path},
        "layers/mlp/gate": "mxfp8",
        "layers/mlp/up": "mxfp8",
    }
    assert set(found.kept) == {"layers/mlp/down", "head"} and not found.skipped
    assert model.layers.mlp.up.dot_general == QuantizedDot(find_recipe("mxfp8"), "layers/mlp/up")
    assert found.text().splitlines() == [
        "nvfp4: emulated; cpu has no FP4 units (layers/attn/k, layers/attn/o, layers/attn/q, layers/attn/v)",
        "mxfp8: emulated; cpu has no FP8 units (layers/mlp/gate, layers/mlp/up)",
    ]


def test_layers_that_blocks_do_not_fill_are_skipped_with_the_reason():
    model = tiny(intermediate_size=72)
    found = install(model, [("layers/.*", "nvfp4")])
    reasons = dict(found.skipped)
    assert set(reasons) == {"layers/mlp/down", "layers/mlp/gate", "layers/mlp/up"}
    assert "72 values, which is no multiple of 16" in reasons["layers/mlp/up"]
    assert not isinstance(model.layers.mlp.up.dot_general, QuantizedDot)
    assert "layers/mlp/up: not quantised: nvfp4" in found.text()


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([("layers/mpl/.*", "nvfp4")], "'layers/mpl/.*' applies to no layer; layers are .*layers/mlp/up"),
        ([("layers/.*", "nvfp4"), ("layers/mlp/.*", "mxfp8")], "'layers/mlp/.*' applies to no layer"),
        ([("layers/.*", "nvfp4"), ("layers/.*", "mxfp8")], "'layers/.*' applies to no layer"),
        ([("haed", None), ("layers/.*", "nvfp4")], "'haed' applies to no layer"),
        (["layers/.*"], "write \\(pattern, format\\)"),
        ([("layers/(", "nvfp4")], "'layers/\\(' is no regular expression: missing"),
        ([("layers/.*", "nvpf4")], "unknown quantisation 'nvpf4' \\(did you mean 'nvfp4'\\?\\); recipes: fp8"),
    ],
)
def test_rules_that_are_wrong(rules, says):
    with pytest.raises(ConfigError, match=says):
        install(tiny(), rules, PLUGINS)


def test_formats_of_plugins_are_recipes_for_weights():
    recipe = find_recipe("nf4", PLUGINS)
    assert recipe.forward_w is not None and recipe.forward_x is None and recipe.same_weights
    assert find_recipe(recipe) is recipe
    with pytest.raises(FormatError, match="number formats, for weights alone: none"):
        find_recipe("nf4")


class Foreign(nnx.Module):
    """Layers of flax itself."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(16, 32, rngs=rngs)
        self.general = nnx.LinearGeneral((4, 8), (2, 16), axis=(-2, -1), rngs=rngs)
        self.einsum = nnx.Einsum("btd,dn->btn", (32, 16), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, rngs=rngs, decode=False)
        self.own = nnx.LinearGeneral(16, 16, rngs=rngs, dot_general_cls=lambda: jax.lax.dot_general)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.linear(x)
        y = self.general(y.reshape(*y.shape[:-1], 4, 8)).reshape(y.shape)
        return self.own(self.attention(self.einsum(y)))


def test_layers_of_flax():
    model = Foreign(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 16, 16))
    plain = model(x)
    found = install(model, [(".*", "int8")])
    assert {path for path, _ in found.installed} == {
        "linear", "general", "einsum", *(f"attention/{name}" for name in ("query", "key", "value", "out")),
    }  # fmt: skip
    assert found.skipped == (("own", "its dot_general_cls would win over dot_general"),)
    assert isinstance(model.einsum.einsum_op, QuantizedEinsum)
    quantised = nnx.jit(lambda model, x: model(x))(model, x)
    assert 1e-4 < float(jnp.linalg.norm(quantised - plain) / jnp.linalg.norm(plain)) < 0.05
    grads = nnx.jit(nnx.grad(lambda model, x: jnp.sum(model(x) ** 2)))(model, x)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))
