"""Codes and scales, bit for bit against the libraries whose results `fixtures/make.py` wrote down.

Where a library follows a rule of its own the rule is the test's name, and nothing else may differ.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.vgpu.quant import QTensor
from apt_jax.vgpu.quant.formats import E2M1, E4M3, E5M2, MXFP4, MXFP8, NF4, NVFP4, Format, Int4, Int8
from apt_jax.vgpu.quant.formats.nvfp4_orders import ORDERS

FIXTURES = Path(__file__).parent / "fixtures"
FINITE = ("random", "outlier", "zeros", "faint", "ties")


@functools.cache
def fixture(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


INPUTS = fixture("inputs")


def quantize(fmt: Format, x: jax.Array) -> tuple[QTensor, jax.Array]:
    q = fmt.quantize(x)
    return q, q.unpack()


@functools.cache
def compiled(fmt: Format) -> Callable[[np.ndarray], tuple[QTensor, jax.Array]]:
    return jax.jit(functools.partial(quantize, fmt))


def encoded(fmt: Format, x: np.ndarray, *, jit: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Codes as bytes (4-bit: from 0 to 15) of x's shape, and scales as unsigned integers."""
    q, native = compiled(fmt)(x) if jit else quantize(fmt, jnp.asarray(x))
    codes = np.asarray(native).view(np.uint8) & (15 if fmt.element.bits == 4 else 255)
    scales = np.asarray(q.scales)
    return codes, scales.view(f"u{scales.dtype.itemsize}")


def expected(reference: str, function: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = fixture(reference)
    codes, scales = (arrays[f"{name}/{function}/{what}"] for what in ("codes", "scales"))
    if function == "q4_0":
        codes = codes - np.uint8(8)  # gguf counts from 0
    if function.startswith(("int4", "q4_0")):
        codes = codes & 15
    return codes.view(np.uint8), scales.view(f"u{scales.dtype.itemsize}")


EXACT: dict[tuple[str, str], Format] = {
    ("torchao", "nvfp4_1"): NVFP4(levels=1),
    ("torchao", "nvfp4_2"): NVFP4(),
    ("torchao", "mxfp4_FLOOR"): MXFP4(),
    ("torchao", "mxfp4_RCEIL"): MXFP4(scale="rceil"),
    ("torchao", "mxfp8_FLOOR"): MXFP8(),
    ("torchao", "mxfp8_RCEIL"): MXFP8(scale="rceil"),
    ("torchao", "int4_no_clipping"): Int4(32, scale_dtype="float32"),
    ("torchao", "int4_symmetric"): Int4(32, rule="symmetric", scale_dtype="float32"),
    ("torchao", "int8_no_clipping"): Int8(scale_dtype="float32"),
    ("torchao", "int8_symmetric"): Int8(rule="symmetric", scale_dtype="float32"),
    ("te", "nvfp4"): NVFP4(order="te"),
    ("te", "nvfp4_tiles"): NVFP4(order="te", tiles=True),
    ("compressed_tensors", "nvfp4"): NVFP4(order="compressed_tensors"),
    ("gguf", "q4_0"): Int4(32, rule="q4_0", scale_dtype="float16"),
    ("bitsandbytes", "nf4"): NF4(scale_dtype="float32"),
    **{
        ("fouroversix", rule + "_tiles" * tiles): NVFP4(
            order="fouroversix", tiles=bool(tiles), four_over_six=None if rule == "static_6" else rule
        )
        for rule in ("static_6", "mse", "mae", "abs_max")
        for tiles in (0, 1)
    },
}
OWN_RULE = {  # tested below
    *((("torchao", f"int{bits}_{rule}"), "zeros") for bits in (4, 8) for rule in ("no_clipping", "symmetric")),
    *((("fouroversix", rule), "faint") for rule in ("static_6", "mse", "mae", "abs_max")),
}
CASES = [(key, name) for key in EXACT for name in FINITE if (key, name) not in OWN_RULE]


@pytest.mark.parametrize(("key", "name"), [*CASES, (("bitsandbytes", "nf4"), "nf4_ties")], ids=str)
def test_no_code_and_no_scale_differs(key, name):
    codes, scales = encoded(EXACT[key], INPUTS[name])
    expected_codes, expected_scales = expected(*key, name)
    assert codes.shape == expected_codes.shape and scales.shape == expected_scales.shape
    assert (codes != expected_codes).sum() == 0
    assert (scales != expected_scales).sum() == 0


@pytest.mark.parametrize("key", [("torchao", "nvfp4_2"), ("torchao", "mxfp4_RCEIL")], ids=str)
def test_without_jit_it_is_the_same(key):
    for compiled, eager in zip(*(encoded(EXACT[key], INPUTS["ties"], jit=jit) for jit in (True, False)), strict=True):
        np.testing.assert_array_equal(compiled, eager)


@pytest.mark.parametrize(("reference", "function"), [("torchao", "nvfp4_2"), ("te", "nvfp4"), ("te", "nvfp4_tiles")])
@pytest.mark.parametrize("name", FINITE)
def test_tensor_scales_are_equal(reference, function, name):
    q, _ = compiled(EXACT[reference, function])(INPUTS[name])
    expected_scale = fixture(reference)[f"{name}/{function}/tensor_scale"]
    np.testing.assert_array_equal(np.asarray(q.tensor_scale), expected_scale)


@pytest.mark.parametrize(("element", "name"), [(E2M1, "float4_e2m1fn"), (E4M3, "float8_e4m3fn"), (E5M2, "float8_e5m2")])
def test_elements_round_as_ml_dtypes_casts(element, name):
    codes = element.to_native(element.round(jnp.asarray(INPUTS["line"]), None))
    np.testing.assert_array_equal(np.asarray(codes).view(np.uint8), fixture("ml_dtypes")[f"line/{name}"])


@pytest.mark.parametrize("name", FINITE)
def test_gguf_mxfp4_has_no_negative_zero_and_takes_the_smaller_at_a_tie(name):
    codes, scales = encoded(MXFP4(), INPUTS[name])
    expected_codes, expected_scales = expected("gguf", "mxfp4", name)
    np.testing.assert_array_equal(scales, expected_scales)
    codes = np.where(codes == 8, 0, codes)
    differs = codes != expected_codes
    in_codes = np.abs(INPUTS[name]) * np.exp2(127 - scales.astype(np.float32)).repeat(32, 1)
    tie = np.isin(in_codes, (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0))
    assert not (differs & ~tie).any()
    even = np.where(codes == 8, 0, codes)[differs] & 7
    assert (even == (expected_codes[differs] & 7) + 1).all()
    assert differs.any() == (name == "ties")


@pytest.mark.parametrize("function", ["int4_no_clipping", "int4_symmetric", "int8_no_clipping", "int8_symmetric"])
def test_torchao_integers_give_zero_blocks_the_smallest_normal_scale(function):
    codes, scales = encoded(EXACT["torchao", function], INPUTS["zeros"])
    expected_codes, expected_scales = expected("torchao", function, "zeros")
    np.testing.assert_array_equal(codes, expected_codes)
    tiny = np.float32(np.finfo(np.float32).tiny).view(np.uint32)
    np.testing.assert_array_equal(np.where(scales == 0, tiny, scales), expected_scales)
    assert (scales == 0).any()


@pytest.mark.parametrize("rule", ["static_6", "mse", "mae", "abs_max"])
def test_fouroversix_lets_a_value_above_7_codes_wrap_to_minus_zero(rule):
    """It rounds to 8 without clipping, which only a subnormal block scale (byte below 8) lets happen."""
    codes, scales = encoded(EXACT["fouroversix", rule], INPUTS["faint"])
    expected_codes, expected_scales = expected("fouroversix", rule, "faint")
    differs = (codes != expected_codes).reshape(*scales.shape, 16).any(-1) | (scales != expected_scales)
    assert differs.any() and (scales[differs] < 8).all()
    if rule == "static_6":
        wrong = codes != expected_codes
        np.testing.assert_array_equal(scales, expected_scales)
        assert ((codes[wrong] & 7) == 7).all() and (expected_codes[wrong] == 8).all()


NONFINITE = {  # what torchao stores for a block with inf, and for one with NaN; ours is NaN for both
    "nvfp4_1": (0x7E, 0x7F),
    "nvfp4_2": (0x7E, 0x7F),
    "mxfp4_FLOOR": (253, 255),
    "mxfp8_FLOOR": (247, 255),
    "mxfp4_RCEIL": (254, 255),
    "mxfp8_RCEIL": (254, 255),
}


@pytest.mark.parametrize("function", NONFINITE)
def test_torchao_hides_inf_in_a_finite_scale(function):
    x = INPUTS["nonfinite"]
    codes, scales = encoded(EXACT["torchao", function], x)
    expected_codes, expected_scales = expected("torchao", function, "nonfinite")
    blocks = x.reshape(*scales.shape, -1)
    has_nan, has_inf = np.isnan(blocks).any(-1), np.isinf(blocks).any(-1)
    kept = ~(has_nan | has_inf)
    np.testing.assert_array_equal(scales[kept], expected_scales[kept])
    each = np.broadcast_to(kept[..., None], blocks.shape).reshape(x.shape)
    np.testing.assert_array_equal(codes[each], expected_codes[each])
    nan = 0xFF if function.startswith("mx") else 0x7F
    assert has_inf.sum() == has_nan.sum() == 2 and (scales[~kept] == nan).all()
    for_inf, for_nan = NONFINITE[function]
    assert (expected_scales[has_nan] == for_nan).all()
    if function.startswith("mx"):
        assert (expected_scales[has_inf] == for_inf).all()


def test_orders_differ_in_single_roundings():
    """An option that is not passed on would be seen here; the figures are those of `nvfp4`'s docstring."""
    most = dict.fromkeys(itertools.combinations(ORDERS, 2), 0.0)
    for seed, std in ((2, 1.0), (4, 1.0), (4, 0.02)):
        x = (std * np.random.default_rng(seed).standard_normal((512, 1024))).astype(np.float32).astype(jnp.bfloat16)
        seen = {order: encoded(NVFP4(order=order), x.astype(np.float32)) for order in ORDERS}
        for one, other in most:
            codes, scales = ((a != b).mean() for a, b in zip(seen[one], seen[other], strict=True))
            assert codes < 0.002 and scales < 0.007
            most[one, other] = max(codes, most[one, other])
    assert min(most.values()) > 0 and most["torchao", "te"] > 0.001


def test_fixtures_are_small_and_say_what_made_them():
    files = sorted(FIXTURES.glob("*.npz"))
    assert sum(file.stat().st_size for file in files) < 2 * 2**20
    assert {file.stem for file in files} == {"inputs", "ml_dtypes", *(reference for reference, _ in EXACT)}
    for file in files:
        assert str(fixture(file.stem)["versions"])[-1].isalnum(), file
