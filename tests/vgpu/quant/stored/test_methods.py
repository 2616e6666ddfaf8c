"""Ways to round a weight: what each promises, for every format it serves."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.formats import FP8E4M3, MXFP4, NF4, NVFP4, Format, Int4, Int8, UInt4
from apt_jax.vgpu.quant.stored import find_method, quantize_weight
from apt_jax.vgpu.quant.stored.clip import clipped
from apt_jax.vgpu.quant.stored.hqq import P_NORM, half_quadratic
from apt_jax.vgpu.quant.stored.methods import round_to_nearest

PLUGINS = load_plugins(disabled=("*",))
METHODS = {"hqq": half_quadratic, "mse": clipped, "rtn": round_to_nearest}
L, K, N = 2, 256, 64
FORMATS = [Int4(), Int4(32), Int4(rule="symmetric"), Int8(), UInt4(), NF4(), NVFP4(), NVFP4(tiles=True), MXFP4()]
FORMATS += [NVFP4(order="fouroversix", four_over_six="mse"), MXFP4(scale="rceil"), FP8E4M3()]
INTEGERS = [Int4(), Int4(32), UInt4(), Int8(block=128)]


@functools.cache
def weights(outliers: float, std: float = 0.02) -> jax.Array:
    """[L, K, N] Gaussian; a share of the values is ten times as large."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((L, K, N)) * np.array([std, 3 * std])[:, None, None]
    return jnp.asarray(np.where(rng.random(w.shape) < outliers, 10 * w, w), jnp.float32)


def decoded(q: QTensor) -> np.ndarray:
    return np.asarray(q.dequantize(), np.float64)


def norm(q: QTensor, w: jax.Array, p: float = 2.0) -> np.ndarray:
    """Of the errors of each layer: the mean of |e|^p."""
    return (np.abs(decoded(q) - np.asarray(w, np.float64)) ** p).mean((1, 2))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_to_nearest_is_the_format_itself_layer_by_layer(fmt: Format):
    w = weights(0.002)
    q = quantize_weight(w, fmt)
    want = jax.jit(jax.vmap(functools.partial(fmt.quantize, axis=-2)))(w)
    assert jax.tree.structure(q) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, q, want)


@pytest.mark.parametrize("outliers", [0.0, 0.002])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_clipping_is_never_worse_for_any_block(fmt: Format, outliers: float):
    w = weights(outliers)
    plain, best = quantize_weight(w, fmt), quantize_weight(w, fmt, clipped)
    assert jax.tree.structure(plain) == jax.tree.structure(best)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail("another layout"), plain, best)
    size = fmt.block or K
    errors = [np.square(decoded(q) - np.asarray(w)) for q in (plain, best)]
    columns = 16 if isinstance(fmt, NVFP4) and fmt.tiles else 1
    if isinstance(fmt, FP8E4M3):
        size, columns = K, N
    old, new = (e.reshape(L, K // size, size, N // columns, columns).sum((2, 4)) for e in errors)
    assert (new <= old * (1 + 1e-5)).all()
    if fmt.element.bits == 4 and fmt != MXFP4():  # whose scales round down already
        assert new.sum() < 0.97 * old.sum()


@pytest.mark.parametrize("outliers", [0.0, 0.002])
@pytest.mark.parametrize("fmt", INTEGERS, ids=str)
def test_hqq_lowers_the_norm_that_it_is_about(fmt: Format, outliers: float):
    w = weights(outliers)
    plain, best = quantize_weight(w, fmt), quantize_weight(w, fmt, half_quadratic)
    assert jax.tree.structure(plain) == jax.tree.structure(best)
    assert (norm(best, w, P_NORM) <= norm(plain, w, P_NORM)).all()
    if fmt.element.bits == 4:
        assert norm(best, w, P_NORM).sum() < 0.99 * norm(plain, w, P_NORM).sum()
    if not outliers:
        assert norm(best, w).sum() <= norm(plain, w).sum()


@pytest.mark.parametrize("method", ["hqq", "mse"])
def test_the_size_of_weights_does_not_matter(method: str):
    w = weights(0.002)
    q, scaled = (quantize_weight(x, UInt4(), METHODS[method]) for x in (w, w * 2.0**-6))
    np.testing.assert_array_equal(decoded(scaled), decoded(q) * 2.0**-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fmt", [Int4(), UInt4()], ids=str)
def test_zeros_stay_zeros_and_nan_stays_in_its_block(fmt: Format, method: str):
    w = np.array(weights(0.0)[0])
    w[:64, 0] = 0
    w[64, 1] = np.nan
    w[64, 2] = np.inf
    values = decoded(quantize_weight(jnp.asarray(w), fmt, METHODS[method]))
    assert (values[:64, 0] == 0).all()
    assert np.isnan(values[64:128, 1:3]).all()
    others = np.ones((K, N), bool)
    others[64:128, 1:3] = False
    assert np.isfinite(values[others]).all()


def test_uint4_has_the_ends_of_a_group_and_zero_point_of_its_own():
    """Groups that lie on one side of 0 use all sixteen codes, which int4 cannot."""
    w = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (128, 8)), jnp.float32)
    q, signed = quantize_weight(w, UInt4()), quantize_weight(w, Int4())
    assert q.zeros is not None and (q.zeros.astype(jnp.float32) == 0).all() and q.bits_per_value == UInt4().bits == 4.5
    assert np.abs(decoded(q) - w).max() < 0.6 / 15 and np.abs(decoded(signed) - w).max() > 1 / 15
    with pytest.raises(FormatError, match="uint4: rounds to the nearest"):
        UInt4().quantize(w, axis=-2, key=jax.random.key(0))


@pytest.mark.parametrize("fmt", [NF4(), Int4(rule="q4_0")], ids=str)
def test_hqq_says_what_it_does_not_serve(fmt: Format):
    with pytest.raises(FormatError, match="method hqq refines int4, int8 and uint4; use method rtn or mse"):
        quantize_weight(weights(0.0), fmt, half_quadratic)


def test_methods_are_found_by_name():
    assert {name: find_method(name, PLUGINS) for name in PLUGINS.registry("quant_methods")} == METHODS
    unknown = r"^unknown quantisation method 'hqqq' \(did you mean 'hqq'\?\); available: hqq, mse, rtn$"
    with pytest.raises(FormatError, match=unknown):
        find_method("hqqq", PLUGINS)


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_a_method_that_is_not_installed_is_said_to_come_with_a_package(name: str):
    with pytest.raises(FormatError, match=f"'{name}' comes with the package apt-jax-qwix: pip install ") as caught:
        find_method(name, PLUGINS)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("there are hqq, mse, rtn")
