"""Stochastic rounding: unbiased for every value, independent for every element, the same for the same key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.vgpu.quant.formats import (
    E2M1,
    E4M3,
    E5M2,
    FP8E4M3,
    FP8E5M2,
    INT4,
    INT8,
    MXFP4,
    MXFP8,
    NF4,
    NVFP4,
    Format,
    Int4,
    Int8,
)
from apt_jax.vgpu.quant.rounding import next_up

ROWS, WIDTH = 15_625, 64  # a million draws of 64 values
FORMATS = [NVFP4(), NVFP4(levels=1), NVFP4(order="te"), NVFP4(order="fouroversix", four_over_six="mse")]
FORMATS += [MXFP4(), MXFP8(), NF4(), Int4(), Int8(), FP8E4M3(), FP8E5M2()]


def draws(fmt: Format, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """float64 [rows, width]: the same row rounded again and again, in one array."""
    rows = jnp.broadcast_to(jnp.asarray(x, jnp.float32), (ROWS, len(x)))
    key = jax.random.key(seed, impl="rbg")  # a CPU draws these ten times as fast
    return np.asarray(jax.jit(fmt.fake)(rows, key=key), np.float64)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_million_draws_have_the_right_mean_and_know_nothing_of_each_other(fmt):
    x = np.random.default_rng(3).standard_normal(WIDTH).astype(np.float32)
    x[16:32] *= 0.01  # a block far below the largest value
    got = draws(fmt, x)
    off = got - x.astype(np.float64)
    sigma = off.std(0)
    # Each of 64 elements; with those that lie on the grid, which never move, held to float32 accuracy.
    assert (np.abs(off.mean(0)) <= 4 * sigma / np.sqrt(ROWS) + 3e-7 * np.abs(x)).all()
    assert abs(off.sum()) < 4 * np.sqrt(ROWS * (sigma**2).sum()) + 3e-7 * ROWS * np.abs(x).sum()
    moving = off[:, sigma > 0] / sigma[sigma > 0]
    assert moving.shape[1] > WIDTH // 2
    correlation = moving.T @ moving / ROWS - np.eye(moving.shape[1])
    assert np.abs(correlation).max() < 5.5 / np.sqrt(ROWS)  # the largest of two thousand
    assert {len(np.unique(column)) for column in got.T} <= {1, 2}  # the two neighbours and nothing else


@pytest.mark.parametrize(("fmt", "x"), [(NVFP4(levels=1), 5.9), (MXFP4(), 7.9), (Int4(), 7.4), (NF4(), 1.001)], ids=str)
def test_the_largest_value_is_unbiased_too(fmt, x):
    """To the nearest it saturates or loses half a step; no scale is left where that would happen."""
    row = np.full(WIDTH, 0.1, np.float32)
    row[0] = x
    off = draws(fmt, row)[:, 0] - np.float32(x)
    assert abs(off.mean()) <= 4 * off.std() / np.sqrt(ROWS) + 3e-7 * x


def test_symmetric_loses_half_a_step_to_the_nearest():
    """Which is why a key takes no_clipping instead."""
    x = jnp.linspace(-1, 1, 32).at[0].set(0)
    assert float(Int4(32, rule="symmetric").fake(x)[-1]) == pytest.approx(7 / 7.5, rel=0.01)
    assert float(Int4(32).fake(x)[-1]) == pytest.approx(1.0, rel=0.005)


def test_a_key_is_a_value_like_any_other():
    x = jax.random.normal(jax.random.key(1), (8, 64))
    fake = jax.jit(NVFP4().fake)
    one, two = (jax.random.fold_in(jax.random.key(0), step) for step in (1, 2))
    np.testing.assert_array_equal(fake(x, key=one), fake(x, key=one))
    assert (fake(x, key=one) != fake(x, key=two)).any()
    packed = jax.jit(lambda x, key: NVFP4().quantize(x, key=key).dequantize())(x, one)
    np.testing.assert_array_equal(packed, fake(x, key=one))


@pytest.mark.parametrize("element", [E2M1, E4M3, E5M2, INT4, INT8])
def test_values_of_the_grid_stay(element):
    codes = jnp.arange(2**element.bits, dtype=jnp.uint8)
    native = jax.lax.bitcast_convert_type(codes if element.bits == 8 else codes.astype(jnp.uint4), element.dtype)
    values = element.from_native(native)
    values = values[jnp.isfinite(values)]
    rounded = jax.jit(lambda x: (element.round(x, None), element.round(x, jax.random.key(0))))(values)
    for got in rounded:
        np.testing.assert_array_equal(got, values)
    assert float(values.max()) == element.max


def test_the_next_larger_number():
    for dtype in (jnp.float8_e4m3fn, jnp.bfloat16, jnp.float32):
        eps = float(jnp.finfo(dtype).eps)
        assert next_up(jnp.asarray([1.0, 2.0, 0.0], dtype)).astype(jnp.float32).tolist() == [
            1 + eps,
            2 + 2 * eps,
            float(jnp.finfo(dtype).smallest_subnormal) if dtype != jnp.float32 else 2.0**-149,
        ]
