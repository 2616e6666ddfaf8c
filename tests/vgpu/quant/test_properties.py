"""What holds for every array."""

from __future__ import annotations

import functools
from collections.abc import Callable

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.vgpu.quant.formats import FP8E4M3, FP8E5M2, MXFP4, MXFP8, NF4, NVFP4, Format, Int4, Int8
from apt_jax.vgpu.quant.packing import pack4, unpack4

SHAPE = (4, 128)
# Any float32, numbers that tie often, and rows of very different size.
FLOATS = hnp.arrays(np.float32, SHAPE, elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False))
WHOLE = hnp.arrays(np.int32, SHAPE, elements=st.integers(-24, 24)).map(lambda x: x.astype(np.float32) / 4)
ROWS = hnp.arrays(np.int32, (4, 1), elements=st.integers(-30, 30)).map(lambda e: np.exp2(e.astype(np.float32)))
ARRAYS = st.one_of(FLOATS, st.tuples(WHOLE, ROWS).map(lambda pair: (pair[0] * pair[1]).astype(np.float32)))

# Format -> largest error of a value, as a part of its block's (FP8: the tensor's) largest.
BOUNDS: dict[Format, float] = {
    MXFP4(): 1 / 4,  # 8 saturates to 6
    MXFP4("rceil"): 1 / 5,
    MXFP8(): 1 / 8,  # 512 saturates to 448
    MXFP8("rceil"): 1 / 17,
    NF4(): 0.152 + 2**-8,  # half the widest gap
    Int4(): 1 / 14 + 2**-8,
    Int8(): 1 / 254 + 2**-8,
    FP8E4M3(): 1 / 28 + 1e-6,
    FP8E5M2(): 1 / 14 + 1e-6,
    NVFP4(): 17 / 96,
    NVFP4(order="te"): 17 / 96,
}


@functools.cache
def fake(fmt: Format) -> Callable[..., jax.Array]:
    return jax.jit(fmt.fake)


few = settings(max_examples=12, deadline=None)
each = pytest.mark.parametrize("fmt", BOUNDS, ids=str)


@few
@given(codes=hnp.arrays(np.uint8, (4, 6, 2), elements=st.integers(0, 15)), axis=st.integers(-3, 2))
def test_unpacking_undoes_packing(codes, axis):
    packed = jax.jit(pack4, static_argnums=1)(codes, axis)
    assert packed.nbytes * 2 == codes.nbytes
    np.testing.assert_array_equal(jax.jit(unpack4, static_argnums=1)(packed, axis), codes)
    low, high = codes.take([0], axis), codes.take([1], axis)
    np.testing.assert_array_equal(packed.take(jnp.array([0]), axis), low | high << 4)


@each
@few
@given(x=ARRAYS)
def test_what_is_quantised_stays_as_it_is(fmt, x):
    """A second time nothing changes; where there is a tensor scale, up to its own rounding."""
    once = np.asarray(fake(fmt)(x))
    twice = np.asarray(fake(fmt)(once))
    if isinstance(fmt, NVFP4 | FP8E4M3 | FP8E5M2):
        np.testing.assert_allclose(twice, once, rtol=1e-6, atol=np.abs(x).max() * 2.0**-20)
    else:
        np.testing.assert_array_equal(twice, once)


@each
@few
@given(x=ARRAYS)
def test_no_value_is_farther_off_than_its_block_allows(fmt, x):
    off = np.abs(np.asarray(fake(fmt)(x), np.float64) - x)
    width = SHAPE[1] if isinstance(fmt, Int8) else fmt.block or x.size
    blocks, off = np.abs(x.astype(np.float64)).reshape(-1, width), off.reshape(-1, width)
    allowed = BOUNDS[fmt] * blocks.max(-1, keepdims=True) + 2.0**-124
    if isinstance(fmt, NVFP4):  # block scales end at 2^-6 (te: 2^-10, half the least e4m3) of the tensor's unit
        allowed = np.maximum(allowed, blocks.max() / 2688 * (2.0**-6 if fmt.order == "torchao" else 6 * 2.0**-10))
    assert (off <= allowed * (1 + 1e-5)).all()


@each
@few
@given(x=ARRAYS, exponent=st.integers(-20, 20))
def test_a_power_of_two_changes_nothing_but_scales(fmt, x, exponent):
    x = np.where(np.abs(x) < 2.0**-60, 0, x)
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(fake(fmt)(x * factor), np.asarray(fake(fmt)(x)) * factor)


@each
@few
@given(x=ARRAYS)
def test_signs_and_zeros_survive(fmt, x):
    got = np.asarray(fake(fmt)(x))
    assert (got[x == 0] == 0).all() and (np.sign(got) * np.sign(x) >= 0).all()
    if not isinstance(fmt, Int4 | Int8 | NF4):  # which reach farther on one side, or have no mirror
        np.testing.assert_array_equal(fake(fmt)(-x), -got)


@few
@given(x=ARRAYS)
def test_one_level_is_not_free_of_scale(x):
    """The trap the second level is for: everything below 2^-9 is gone."""
    small = x / max(float(np.abs(x).max()), 1e-30) * np.float32(2.0**-9)
    assert not np.asarray(fake(NVFP4(levels=1))(small)).any()
