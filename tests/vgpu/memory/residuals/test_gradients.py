"""Gradients of steps whose activations are kept by a codec: the forward pass is untouched, the rest as the codec is.

With a codec that loses nothing, every layout, remat policy and schedule gives the plain step's numbers bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core import noise
from apt_jax.core.config.schema import DistributedConfig
from apt_jax.model.architectures.apt import apt
from apt_jax.model.architectures.llama import llama
from apt_jax.vgpu.memory.residuals import FormatCodec, Residuals, compressed, recorded
from apt_jax.vgpu.quant.formats.integer import Int8, int4_g32
from apt_jax.vgpu.quant.formats.nvfp4 import NVFP4
from tests.trainops.engine import tiny

PIPE = DistributedConfig(strategy="hybrid", pipeline_parallel=2)


@dataclass(frozen=True)
class Lossless:
    """Keeps the bits as integers, so that nothing of them can be mistaken for the array itself."""

    stochastic: bool = False

    def encode(self, x, key):
        assert key is None
        return jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])

    def decode(self, stored, like):
        return jax.lax.bitcast_convert_type(stored, like.dtype)


def with_residuals(codec, architecture=llama):
    def make(*args, **kwargs):
        model = architecture(*args, **kwargs)
        model.layers.residuals = codec and Residuals("layers", ((".*", codec),))
        return model

    return make


def trained(codec, *, architecture=llama, dtype=jnp.float32, devices=1, distributed=None, model=None, **changes):
    program, params = tiny.make_program(
        tiny.with_training(**changes), model=replace(tiny.MODEL, **(model or {})), dtype=dtype, devices=devices,
        distributed=distributed, architecture=with_residuals(codec, architecture),
    )  # fmt: skip
    with recorded() as entries:
        state, losses = tiny.run(program, params, 2)
    assert bool(entries) == (codec is not None)
    return state.params, losses


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="scan"),
        pytest.param({"architecture": apt, "dtype": jnp.bfloat16, "model": {"dropout": 0.1}}, id="apt, bf16, dropout"),
        pytest.param({"model": {"scan_layers": False, "remat_policy": "dots"}}, id="unrolled, dots"),
        pytest.param({"model": {"remat_policy": "attention"}}, id="attention"),
        pytest.param({"dtype": jnp.bfloat16, "model": {"remat_policy": "weights"}}, id="weights"),
        pytest.param({"gradient_accumulation_steps": 2, "devices": 4,
                      "distributed": DistributedConfig(strategy="fsdp")}, id="fsdp, parts"),
        pytest.param({"devices": 2, "distributed": DistributedConfig(strategy="tensor")}, id="tensor"),
        pytest.param({"devices": 2, "distributed": PIPE, "gradient_accumulation_steps": 2}, id="pipe"),
    ],
)  # fmt: skip
def test_nothing_lost_is_the_plain_step(arguments):
    plain, plain_losses = trained(None, **arguments)
    kept, losses = trained(Lossless(), **arguments)
    exact = "distributed" not in arguments  # XLA may add up shards in another order around what is kept
    assert losses == plain_losses if exact else np.allclose(losses, plain_losses, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6)


def block(x, scale, w, v):
    """A norm, two products and what lies between them."""
    normed = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale
    return jax.nn.silu(normed @ w) @ v


def arguments(rows=64, width=64, hidden=128):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (rows, width), (width,), (width, hidden), (hidden, width)
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize(("codec", "error"), [(FormatCodec(Int8()), 0.02), (FormatCodec(NVFP4()), 0.2)])
def test_the_forward_pass_is_untouched_and_the_gradient_close(codec, error):
    inputs = arguments()
    kept = compressed(block, Residuals("block", ((".*", codec),)))
    np.testing.assert_array_equal(jax.jit(kept)(*inputs), jax.jit(block)(*inputs))

    def loss(f):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2, 3)))

    for found, exact in zip(loss(kept)(*inputs), loss(block)(*inputs), strict=True):
        relative = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
        assert 0 < relative < error


def test_stochastic_codes_leave_the_gradient_of_weights_unbiased():
    x, w = arguments(32, 64, 64)[0], jnp.eye(64)
    kept = compressed(lambda x, w: x @ w, Residuals("linear", ((".*", FormatCodec(int4_g32(), stochastic=True)),)))

    def gradient(key):
        with noise.use_key(lambda: key):
            return jax.grad(lambda w: jnp.sum(jnp.sin(kept(x, w))))(w)

    draws = jax.jit(lambda keys: jax.lax.map(gradient, keys))(jax.random.split(jax.random.key(1), 1000))
    exact = jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(w)
    spread = jnp.std(draws, axis=0) / jnp.sqrt(draws.shape[0])
    apart = jnp.abs(jnp.mean(draws, axis=0) - exact) / jnp.maximum(spread, 1e-9)
    assert jnp.min(jnp.std(draws, axis=0)) > 0, "each gradient is drawn"
    assert jnp.mean(apart > 4) < 1e-3 and jnp.max(apart) < 6
    nearest = compressed(lambda x, w: x @ w, Residuals("linear", ((".*", FormatCodec(int4_g32())),)))
    assert jnp.linalg.norm(jax.grad(lambda w: jnp.sum(jnp.sin(nearest(x, w))))(w) - exact) > 0


def test_an_array_used_by_several_products_is_kept_once():
    x, _, w, _ = arguments()

    def three(x, w):
        y = jnp.sin(x)
        return (y @ w) * (y @ (2 * w)) + y.reshape(8, -1).reshape(y.shape) @ w

    with recorded() as entries:
        jax.eval_shape(jax.grad(lambda x: jnp.sum(compressed(three, Residuals("f", ((".*", Lossless()),)))(x, w))), x)
    wide = [entry for entry in entries if entry.shape == x.shape]
    assert len(wide) <= 2, "sin(x) for the products and x (or cos x) for the sine, not one for each use"
