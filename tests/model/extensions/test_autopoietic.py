"""The autopoietic branch, alone and grafted on a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.model.architectures.apt import apt
from apt_jax.model.architectures.llama import llama
from apt_jax.model.extensions.autopoietic import AutopoieticBranch, silence

CONFIG = ModelConfig(hidden_size=16, num_layers=2, num_attention_heads=4, intermediate_size=24)
X = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 32, (2, 6))


def branch() -> AutopoieticBranch:
    config = replace(CONFIG, initializer_range=0.3)
    return AutopoieticBranch(config, 4, 4, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))


def gradients(module: AutopoieticBranch) -> dict[str, float]:
    graphdef, params = nnx.split(module)
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(X) + 1.0)))(params)
    return {".".join(path): float(jnp.abs(g[...]).max()) for path, g in nnx.to_flat_state(grads)}


def test_formula() -> None:
    b = branch()
    gate = 1 / (1 + np.exp(-(X @ np.asarray(b.gate.kernel) + np.asarray(b.gate.bias))))
    delta = (X @ np.asarray(b.down.kernel) @ np.asarray(b.up.kernel)).reshape(2, 6, 4, 4)
    np.testing.assert_allclose(b(X), np.tanh(float(b.tau[...])) * gate[..., None] * delta, atol=1e-6)


def test_a_token_sees_only_itself() -> None:
    b = branch()
    np.testing.assert_array_equal(b(X)[:, :3], b(X[:, :3]))


def test_every_parameter_learns_from_scratch() -> None:
    assert all(size > 1e-6 for size in gradients(branch()).values())


def test_silenced_it_adds_nothing_and_wakes_through_one_step() -> None:
    b = branch()
    silence(b)
    np.testing.assert_array_equal(b(X), np.zeros((2, 6, 4, 4)))
    first = gradients(b)
    assert first["up.kernel"] > 1e-6
    assert first["down.kernel"] == first["gate.kernel"] == first["tau"] == 0
    b.up.kernel[...] += 0.1  # as an optimizer step would
    assert all(size > 1e-6 for size in gradients(b).values())


def test_grafted_on_a_llama_the_model_is_unchanged() -> None:
    base = llama(replace(CONFIG, architecture="llama"), 32, nnx.Rngs(0))
    grafted: Any = apt(replace(CONFIG, left_spin_alpha=0.0), 32, nnx.Rngs(1))
    nnx.update(grafted, nnx.state(base))
    assert not np.array_equal(grafted(TOKENS), base(TOKENS))
    silence(grafted.layers.attn.autopoietic)
    np.testing.assert_array_equal(grafted(TOKENS), base(TOKENS))
