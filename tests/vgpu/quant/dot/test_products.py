"""The three products against references that compute each from rounded operands, in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from apt_jax.core import noise
from apt_jax.vgpu.quant import FormatError, rotate
from apt_jax.vgpu.quant.dot import RECIPES, QuantizedEinsum, Recipe, find_recipe, quantized_dot
from apt_jax.vgpu.quant.dot.recipe import weights_only
from apt_jax.vgpu.quant.formats import NF4, NVFP4, Int4

B, T, K, N = 2, 32, 64, 96
CONTRACT = (((2,), (0,)), ((), ()))


@functools.cache
def arrays(dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x with an outlier channel, w, and a cotangent with a wide range of sizes."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (B, T, K)) * jnp.where(jnp.arange(K) == 5, 30.0, 1.0)
    w = jax.random.normal(keys[1], (K, N)) * 0.02
    g = jax.random.normal(keys[2], (B, T, N)) * jnp.exp(3 * jax.random.normal(keys[3], (B, T, 1))) * 1e-4
    return x.astype(dtype), w.astype(dtype), g.astype(dtype)


def products(dot, x, w, g, key=None):
    """y, dx, dw."""

    def run(x, w, g, key):
        with noise.use_key(None if key is None else lambda: key):
            y, pull = jax.vjp(lambda x, w: dot(x, w, CONTRACT), x, w)
            return y, *pull(g)

    return jax.jit(run)(x, w, g, key)


@functools.partial(jax.jit, static_argnums=(0, 2))
def fake(format, array, axis, key):
    return format.fake(array, axis=axis, key=key)


def reference(recipe: Recipe, x, w, g, key=None):
    """y, dx, dw; nothing is shared with the code under test but the formats."""

    def rounded(format, array, axis, key=None):
        array = array.astype(jnp.float32)
        return np.asarray(array if format is None else fake(format, array, axis, key), np.float64)

    dgrad_key, wgrad_key = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, 0))
    y = rounded(recipe.forward_x, x, -1) @ rounded(recipe.forward_w, w, 0)
    weights = rounded(recipe.dgrad_w, w, 0 if recipe.same_weights else 1)
    dx = rounded(recipe.dgrad_g, g, -1, dgrad_key) @ weights.T
    tokens, gradients = x.reshape(-1, K), g.reshape(-1, N)
    if recipe.hadamard:
        size = len(recipe.hadamard)
        tokens, gradients = (rotate(a, axis=0, block=size, signs=recipe.hadamard) for a in (tokens, gradients))
    left = rounded(recipe.wgrad_x, tokens, 0)
    if recipe.wgrad_g is not None and key is not None:
        # The shape in which numbers are drawn: the code under test keeps the axes of rows where blocks fill them.
        shape = (B * T, N) if recipe.wgrad_g.block is None else g.shape
        gradients = gradients.reshape(shape)
        right = rounded(recipe.wgrad_g, gradients, -2, wgrad_key).reshape(-1, N)
    else:
        right = rounded(recipe.wgrad_g, gradients, 0)
    return y, dx, left.T @ right


EXTRA = {
    "nf4 weights": weights_only("nf4", NF4()),
    "int4 weights": weights_only("int4", Int4(block=32)),
    "nvfp4 rows, forward alone": Recipe("rows", NVFP4(), NVFP4()),
}


def error(found, expected) -> float:
    difference = np.asarray(found, np.float64) - np.asarray(expected, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(expected, np.float64)))


@pytest.mark.parametrize("name", [*RECIPES, *EXTRA])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_product_is_that_of_the_rounded_operands(name, dtype):
    recipe = EXTRA.get(name) or find_recipe(name)
    x, w, g = arrays(dtype)
    key = jax.random.key(7) if recipe.stochastic else None
    dot = quantized_dot(recipe)
    found = products(dot, x, w, g, key)
    expected = reference(recipe, x, w, g, key)
    # bfloat16: the result is rounded once, by up to 2^-9 of each value.
    limit = 2e-6 if dtype == jnp.float32 else 2.0**-8
    for role, a, b in zip(("forward", "dgrad", "wgrad"), found, expected, strict=True):
        assert a.dtype == dtype
        assert error(a, b) < limit, role


@pytest.mark.parametrize("name", list(RECIPES))
def test_rounding_is_felt(name):
    """The quantised products are not the plain ones, but near them."""
    x, w, g = arrays()
    plain = np.asarray(x @ w), np.asarray(g @ w.T), np.asarray(jnp.einsum("btk,btn->kn", x, g))
    found = products(quantized_dot(name), x, w, g)
    errors = [error(a, b) for a, b in zip(found, plain, strict=True)]
    weights_alone = name == "nvfp4_weights"
    assert all(1e-4 < e < 0.3 for e in (errors[:2] if weights_alone else errors))
    assert not weights_alone or errors[2] < 1e-6  # straight through


def test_tiles_give_forward_and_dgrad_the_same_weights():
    recipe = find_recipe("nvfp4")
    w = arrays()[1]
    forward, dgrad = recipe.forward_w.fake(w, axis=0), recipe.dgrad_w.fake(w, axis=1)
    np.testing.assert_array_equal(forward, dgrad)
    np.testing.assert_array_equal(recipe.forward_w.fake(w.T, axis=1), forward.T)


def test_the_hadamard_transform_cancels_in_high_precision():
    x, w, g = arrays()
    plain = Recipe("plain")
    signs = find_recipe("nvfp4").hadamard
    assert signs is not None
    rotated = [np.asarray(rotate(a.reshape(B * T, -1), axis=0), np.float64) for a in (x, g)]
    assert error(rotated[0].T @ rotated[1], products(quantized_dot(plain), x, w, g)[2]) < 1e-6


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int8"])
def test_stochastic_gradients_are_unbiased(name):
    """The mean over keys is the gradient of x as it was rounded, within 4 sigma for 99.9 % of the elements."""
    x, w, g = arrays()
    recipe, draws = find_recipe(name), 256
    keys = jax.random.split(jax.random.key(3), draws)

    def gradients(key):
        with noise.use_key(lambda: key):
            _, pull = jax.vjp(lambda x, w: quantized_dot(recipe)(x, w, CONTRACT), x, w)
        return pull(g)

    dx, dw = jax.jit(lambda keys: jax.lax.map(gradients, keys))(keys)
    unrounded = Recipe("", recipe.forward_x, recipe.forward_w, None, recipe.dgrad_w, recipe.wgrad_x, None,
                       hadamard=recipe.hadamard)  # fmt: skip
    _, expected_dx, expected_dw = reference(unrounded, x, w, g)
    for found, expected in ((dx, expected_dx.reshape(dx.shape[1:])), (dw, expected_dw)):
        found = np.asarray(found, np.float64)
        sigma = found.std(0) / draws**0.5
        assert sigma.max() > 0
        floor = 1e-6 * np.abs(expected).max()  # float32 sums
        off = np.abs(found.mean(0) - expected) > 4 * sigma + floor
        assert off.mean() < 1e-3
        nearest = np.abs(found.mean(0) - expected).mean()
        assert nearest < 0.2 * found.std(0).mean()


def test_keys_decide_and_nothing_else():
    x, w, g = arrays()
    dot = quantized_dot("nvfp4", "a")
    key = jax.random.key(1)
    first, again = products(dot, x, w, g, key), products(dot, x, w, g, key)
    other = products(dot, x, w, g, jax.random.key(2))
    elsewhere = products(quantized_dot("nvfp4", "b"), x, w, g, key)
    nearest = products(dot, x, w, g)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for variant in (other, elsewhere, nearest):
        np.testing.assert_array_equal(first[0], variant[0])  # forward: to nearest, always
        assert all(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(first[1:], variant[1:], strict=True))


def test_scan_and_rematerialisation_give_the_same_bits_and_layers_draw_apart():
    x, w, g = arrays()
    square = jnp.stack([w[:, :K]] * 3)  # equal weights: layers differ by their noise alone
    dot = quantized_dot("nvfp4", "a")

    def loss(stacked, x, way):
        with noise.use_key(lambda: jax.random.key(5)):

            def body(carry, layer):
                weights, index = layer
                with noise.folded(index):
                    return carry, dot(x, weights, CONTRACT)

            body = body if way == "plain" else jax.checkpoint(body)
            indices = jnp.arange(3)
            if way == "unrolled":
                y = jnp.stack([body(0.0, (stacked[i], i))[1] for i in range(3)])
            else:
                y = jax.lax.scan(body, 0.0, (stacked, indices))[1]
            return jnp.sum(y * g[None, :, :, :K])

    results = [jax.jit(jax.grad(functools.partial(loss, way=way)))(square, x) for way in ("plain", "remat", "unrolled")]
    for result in results[1:]:
        np.testing.assert_allclose(results[0], result, rtol=1e-5, atol=1e-9)
    assert np.any(np.asarray(results[0][0]) != np.asarray(results[0][1]))


def test_vmap():
    x, w, g = arrays()
    dot = quantized_dot("mxfp8")

    def one(x, g):
        y, pull = jax.vjp(lambda w: dot(x, w, (((1,), (0,)), ((), ()))), w)
        return y, pull(g)[0]

    y, dw = jax.jit(jax.vmap(one))(x, g)
    for row in range(B):
        expected = jax.jit(one)(x[row], g[row])
        np.testing.assert_allclose(y[row], expected[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(dw[row], expected[1], rtol=1e-5, atol=1e-9)


def test_rows_that_blocks_do_not_fill_are_taken_together_or_refused():
    x, w, g = arrays()
    whole = products(quantized_dot("nvfp4"), x, w, g)
    odd = [a.reshape(8, 8, -1) for a in (x, g)]  # 8 tokens a row, 64 in all
    merged = products(quantized_dot("nvfp4"), odd[0], w, odd[1])
    for a, b in zip(whole, merged, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-6, atol=1e-9)
    with pytest.raises(FormatError, match="layer 'mlp': its weight gradient contracts 6 tokens, no multiple of 16"):
        products(quantized_dot("nvfp4", "mlp"), x[:, :3], w, g[:, :3])
    quantized_dot("nvfp4")(x[:1, :1], w, CONTRACT)  # decoding: one token
    with pytest.raises(FormatError, match="no multiple of 16"):
        quantized_dot("nvfp4")(x[..., :60], w[:60], CONTRACT)
    with pytest.raises(FormatError, match=r"only x .* is quantised"):
        quantized_dot("nvfp4")(w, w, (((0,), (0,)), ((), ())))


def test_several_axes_and_einsum_are_the_same_product():
    x, w, _ = arrays()
    dot = quantized_dot("nvfp4")
    y = dot(x, w, CONTRACT)
    cut = dot(x.reshape(B, T, 4, 16), w.reshape(4, 16, 6, 16), (((2, 3), (0, 1)), ((), ())))
    np.testing.assert_array_equal(cut, y.reshape(B, T, 6, 16))
    einsum = QuantizedEinsum(dot)
    np.testing.assert_array_equal(einsum("btd,dnh->btnh", x, w.reshape(K, 6, 16)), y.reshape(B, T, 6, 16))
    np.testing.assert_array_equal(einsum("...d,dn->...n", x, w), y)
    np.testing.assert_array_equal(einsum("btd,nd->nbt", x, w.T), jnp.moveaxis(y, -1, 0))
    for equation in ("btd,bdn->btn", "btd,dn->bn", "btd->bt"):
        with pytest.raises(FormatError, match="no product of a matrix"):
            einsum(equation, x, w)


def test_a_dot_is_static_in_a_graph():
    layer = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
    layer.dot_general = quantized_dot("nvfp4")
    again = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
    again.dot_general = quantized_dot("nvfp4")
    assert nnx.graphdef(layer) == nnx.graphdef(again) and hash(nnx.graphdef(layer)) == hash(nnx.graphdef(again))
