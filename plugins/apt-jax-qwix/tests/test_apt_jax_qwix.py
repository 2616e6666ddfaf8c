"""GPTQ beside a reference in numpy, AWQ beside plain rounding; both on inputs whose channels are not alike."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix", reason="GPTQ and AWQ need: pip install plugins/apt-jax-qwix")

from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.formats import FP8E4M3, MXFP4, NF4, NVFP4, Format, Int4, Int8, UInt4
from apt_jax.vgpu.quant.stored import CalibratedMethod, find_method, quantize_weight

PLUGINS = load_plugins(enabled=("qwix",))
T, K, N = 512, 64, 48
SEEDS = range(8)
INT4 = Int4(block=16)  # few columns in a block, so that there is less to compile


@functools.cache
def case(seed: int, noise: float = 0.3, outliers: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [T, K] that are correlated, a few channels ten times as large, and weights [K, N]."""
    rng = np.random.default_rng(seed)
    x_TK = rng.standard_normal((T, 8)) @ rng.standard_normal((8, K)) + noise * rng.standard_normal((T, K))
    x_TK[:, rng.choice(K, outliers, replace=False)] *= 10
    return x_TK.astype(np.float32), 0.02 * rng.standard_normal((K, N)).astype(np.float32)


def method(name: str) -> CalibratedMethod:
    found = find_method(name, PLUGINS)
    assert isinstance(found, CalibratedMethod)
    return found


def rounded(name: str, format: Format, x_TK: np.ndarray, w_KN: np.ndarray) -> QTensor:
    """In two batches of unequal size, the second with padding."""
    chosen = method(name)
    first, rest = x_TK[:200], np.concatenate([x_TK[200:], np.zeros((5, K), np.float32)])
    sums: Any = chosen.observe(jnp.asarray(first)) + chosen.observe(jnp.asarray(rest))
    return chosen.quantize(format, jnp.asarray(w_KN), sums, len(x_TK))


def output_error(x_TK: np.ndarray, w_KN: np.ndarray, q: QTensor) -> float:
    """|X (W - Ŵ)| / |X W|."""
    x, error = x_TK.astype(np.float64), w_KN - np.asarray(q.dequantize(), np.float64)
    return float(np.linalg.norm(x @ error) / np.linalg.norm(x @ w_KN))


def replay(
    x_TK: np.ndarray, w_KN: np.ndarray, codes: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """(W in steps as each code was chosen [K, N], scales [K/block, N]): the algorithm's definition, in float64.

    Each step moves the error of input k to the inputs after it by the inverse of what is left of H (equation 2 of the
    paper), without Cholesky factors, lazy batches or anything else that makes it fast. The codes are those given: the
    farthest value of a block lies half-way between two, and either would do.
    """
    h = x_TK.T.astype(np.float64) @ x_TK / len(x_TK)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(K)
    w, steps, scales = w_KN.astype(np.float64), np.zeros((K, N)), np.zeros((K // block, N))
    for k in range(K):
        if k % block == 0:
            scales[k // block] = np.abs(w[k : k + block]).max(0) / 7.5
        scale = scales[k // block]
        steps[k] = w[k] / scale
        inverse = np.linalg.inv(h[k:, k:])
        w[k:] -= np.outer(inverse[:, 0], (w[k] - codes[k] * scale) / inverse[0, 0])
    return steps, scales


@pytest.mark.parametrize("seed", SEEDS)
def test_gptq_is_the_papers_algorithm(seed):
    x_TK, w_KN = case(seed, noise=1.0, outliers=0)
    q = rounded("gptq", INT4, x_TK, w_KN)
    codes = np.asarray(q.unpack().astype(jnp.int8))
    steps, scales = replay(x_TK, w_KN, codes, INT4.block)
    np.testing.assert_allclose(np.asarray(q.scales, np.float64), scales, rtol=2**-8)  # stored in bfloat16
    assert np.abs(np.clip(steps, -8, 7) - codes).max() < 0.5 + 1e-3
    plain = np.round(w_KN / np.repeat(scales, INT4.block, 0)).clip(-8, 7)
    assert np.abs(np.clip(replay(x_TK, w_KN, plain, INT4.block)[0], -8, 7) - plain).max() > 1  # plain rounding is not


@pytest.mark.parametrize("format", [INT4, Int8(block=16), Int4(block=16, scale_dtype="float32")], ids=str)
def test_gptq_lowers_the_error_of_the_outputs(format):
    ratios = []
    for seed in SEEDS:
        x_TK, w_KN = case(seed)
        q = rounded("gptq", format, x_TK, w_KN)
        assert (q.format, q.shape, q.axis, q.channel_scales) == (format, w_KN.shape, -2, None)
        plain = quantize_weight(jnp.asarray(w_KN), format)
        assert q.nbytes == plain.nbytes and q.scales.dtype == plain.scales.dtype
        ratios.append(output_error(x_TK, w_KN, q) / output_error(x_TK, w_KN, plain))
    assert max(ratios) < 1 and np.mean(ratios) < 0.6


def test_awq_lowers_the_error_of_the_outputs():
    for format in (INT4, UInt4(16), NF4(16), NVFP4()):
        ratios = []
        for seed in SEEDS:
            x_TK, w_KN = case(seed)
            plain = quantize_weight(jnp.asarray(w_KN), format)
            ratios.append(
                output_error(x_TK, w_KN, rounded("awq", format, x_TK, w_KN)) / output_error(x_TK, w_KN, plain)
            )
        assert np.mean(ratios) < 0.9, str(format)


@pytest.mark.parametrize("seed", [0, 1])
def test_awq_changes_nothing_but_the_rounding(seed):
    """With a format that rounds nothing, outputs are equal to 1e-5; what is stored is W / r, and r beside it."""
    x_TK, w_KN = case(seed)
    q = rounded("awq", INT4, x_TK, w_KN)
    assert q.channel_scales is not None and q.channel_scales.shape == (K, 1) and q.dtype == jnp.float32
    r_K1 = np.asarray(q.channel_scales, np.float32)
    assert r_K1.max() / r_K1.min() > 2
    plain = quantize_weight(jnp.asarray(w_KN / r_K1), INT4)
    np.testing.assert_array_equal(q.codes, plain.codes)
    np.testing.assert_array_equal(np.asarray(q.dequantize()), np.asarray(plain.dequantize()) * r_K1)
    exact = x_TK @ w_KN
    unrounded = (w_KN / r_K1) * r_K1
    np.testing.assert_allclose(x_TK @ unrounded, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_what_does_not_go_is_one_line():
    for name, format, message in (
        ("gptq", NVFP4(), "nvfp4: method gptq serves int4 and int8; use awq, mse or rtn"),
        ("gptq", Int4(rule="q4_0"), "method gptq serves int4 and int8"),
        ("awq", FP8E4M3(), "fp8_e4m3: qwix has nothing like it; use int4, int8, mxfp4, nf4, nvfp4, uint4"),
    ):
        with pytest.raises(FormatError, match=message):
            method(name).check(format)
    for format in (INT4, Int8(), UInt4(), NF4(), NVFP4(), MXFP4()):
        method("awq").check(format)
    x_TK, w_KN = case(0)
    with pytest.raises(FormatError, match="finds no finite answer from 512 tokens; calibrate with more rows"):
        rounded("gptq", INT4, x_TK, np.where(np.arange(N) == 3, np.nan, w_KN).astype(np.float32))
