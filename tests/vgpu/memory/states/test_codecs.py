"""Moments come back from their codecs as near as their bits allow, at any size, and nothing bad is hidden."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.vgpu.memory.states.codecs import BF16, BF16_DITHER, INT8, SQRT_UINT8, Codec, Stored
from apt_jax.vgpu.memory.states.sizes import BLOCK, scale_shape

STEP = jnp.int32(1)


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def round_trip(codec, x):
    stored = jax.jit(codec.encode)(jnp.asarray(x), STEP)
    return stored, np.asarray(jax.jit(codec.decode)(stored))


def widened(scales, n):
    return np.repeat(np.asarray(scales), BLOCK, axis=-1)[..., :n]


@settings(deadline=None, max_examples=25)
@given(
    n=st.sampled_from([1, 40, 128, 200, 384]), exponent=st.integers(-12, 4), seed=st.integers(0, 2**16), rows=st.just(3)
)
def test_int8_is_off_by_half_a_step_at_most(n, exponent, seed, rows):
    x = random((rows, n), seed) * np.float32(10.0**exponent)
    stored, found = round_trip(INT8, x)
    assert stored.codes.shape == x.shape and stored.codes.dtype == jnp.int8
    assert stored.scales is not None and stored.scales.shape == scale_shape(x.shape)
    assert np.all(np.abs(found - x) <= 0.5001 * widened(stored.scales, n))
    np.testing.assert_allclose(np.abs(found).max(-1), np.abs(x).max(-1), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    n=st.sampled_from([1, 40, 128, 200, 384]), exponent=st.integers(-12, 4), seed=st.integers(0, 2**16), rows=st.just(3)
)
def test_the_root_is_off_by_half_a_step_and_never_zero(n, exponent, seed, rows):
    roots = np.abs(random((rows, n), seed)) * np.float32(10.0**exponent)
    stored, found = round_trip(SQRT_UINT8, roots**2)
    assert stored.codes.shape == roots.shape and stored.codes.dtype == jnp.uint8
    steps = widened(stored.scales, n)
    assert np.all(np.abs(np.sqrt(found) - np.maximum(roots, steps)) <= 0.5002 * steps)
    assert np.all(found > 0)


@pytest.mark.parametrize("codec", [INT8, SQRT_UINT8, BF16, BF16_DITHER], ids=["int8", "sqrt", "bf16", "dither"])
def test_zeros_stay_zeros_beside_anything(codec):
    x = np.zeros((2, 3, 256), np.float32)
    x[0, 0, 200], x[1, 2, :] = 7.0, 1e-30
    _, found = round_trip(codec, x)
    assert np.isfinite(found).all()
    assert not found[0, 0, :128].any() and not found[0, 1:].any() and not found[1, :2].any()
    np.testing.assert_allclose(found[0, 0, 200], 7.0, rtol=1e-2)
    nothing = jax.tree.map(jnp.zeros_like, codec.encode(jnp.asarray(x), STEP))
    assert not np.asarray(codec.decode(nothing)).any()  # as moments begin


def test_rows_have_scales_of_their_own():
    x = random((4, 130))
    larger = x * np.array([[1], [1e6], [1], [1]], np.float32)
    for codec in (INT8, SQRT_UINT8):
        before, after = (round_trip(codec, np.abs(values))[1] for values in (x, larger))
        np.testing.assert_array_equal(before[[0, 2, 3]], after[[0, 2, 3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("codec", [INT8, SQRT_UINT8, BF16, BF16_DITHER], ids=["int8", "sqrt", "bf16", "dither"])
def test_what_is_not_finite_is_seen_after_decoding(codec, bad):
    x = np.abs(random((2, 256)))
    x[1, 3] = bad
    stored, found = round_trip(codec, x)
    assert not np.isfinite(found[1, 3])
    assert np.isfinite(found[0]).all() and np.isfinite(found[1, 128:]).all()
    assert stored.scales is None or not np.isfinite(stored.scales[1, 0])


@pytest.mark.parametrize("sign", [1, -1])
def test_dithering_is_right_on_average(sign):
    x = sign * np.abs(random((3, 70))) * np.float32(1e-6)
    at = jax.jit(lambda step: BF16_DITHER.decode(BF16_DITHER.encode(jnp.asarray(x), step)))
    found = np.mean([at(jnp.int32(step)) for step in range(256)], axis=0)
    np.testing.assert_allclose(found, x, rtol=1e-4)
    nearest = round_trip(BF16, x)[1]
    assert np.abs(nearest / x - 1).max() > 1e-3


def followed(codec: Codec) -> float:
    """Median of stored over true √v, decay 0.999, two thousand steps after gradients became ten times smaller."""
    sizes = jnp.exp(jnp.asarray(random((4, 128), seed=1)))

    def step(moments, t):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), sizes.shape)
        g2 = (noise * sizes * jnp.where(t < 2000, 1.0, 0.1)) ** 2
        true, stored = moments
        v = 0.001 * g2 + 0.999 * codec.decode(stored)
        return (0.001 * g2 + 0.999 * true, codec.encode(v, t)), None

    start = jnp.zeros(sizes.shape)
    begun = jax.tree.map(jnp.zeros_like, codec.encode(start, STEP))
    (true, stored), _ = jax.jit(lambda: jax.lax.scan(step, (start, begun), jnp.arange(1, 4001)))()
    return float(jnp.median(jnp.sqrt(codec.decode(stored) / true)))


def test_second_moments_follow_gradients_that_become_smaller():
    assert followed(SQRT_UINT8) == pytest.approx(1, abs=0.03)
    assert followed(BF16_DITHER) == pytest.approx(1, abs=0.03)


def test_why_not_to_nearest_bf16():
    """Neither v itself nor the scale of a block may be rounded to nearest: they would stay where they are."""

    def with_rounded_scales(x, step):
        stored = SQRT_UINT8.encode(x, step)
        assert stored.scales is not None
        return Stored(stored.codes, stored.scales.astype(jnp.bfloat16).astype(jnp.float32))

    assert followed(BF16) > 2
    assert followed(Codec(with_rounded_scales, SQRT_UINT8.decode)) > 2
