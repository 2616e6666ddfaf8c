"""Formats by name, what they cost and lose, and what they do with what they cannot hold."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax import hookimpl
from apt_jax.core.errors import ConfigError, PluginError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.quant import Encoded, Format, FormatError, find_format
from apt_jax.vgpu.quant.formats import FP8E4M3, FP8E5M2, INT8, MXFP4, MXFP8, NF4, NVFP4, Int4, Int8

PLUGINS = load_plugins(disabled=("*",))
# Name -> (bits a value, relative error of a Gaussian at any scale).
BUILT_IN = {
    "fp8_e4m3": (8.0, 0.0264),
    "fp8_e5m2": (8.0, 0.0526),
    "int4": (4.25, 0.1022),
    "int4_g128": (4.125, 0.1117),
    "int4_g32": (4.5, 0.0919),
    "int8": (8.0, 0.0075),
    "int8_g128": (8.125, 0.0065),
    "mxfp4": (4.25, 0.115),
    "mxfp4_rceil": (4.25, 0.117),
    "mxfp8": (8.25, 0.030),
    "mxfp8_rceil": (8.25, 0.0265),
    "nf4": (4.25, 0.0919),
    "nvfp4": (4.5, 0.0949),
    "nvfp4_four_over_six": (4.5, 0.0866),
    "nvfp4_one_level": (4.5, None),
    "nvfp4_tiles": (4.03125, 0.1113),
    "uint4": (4.5, 0.0896),
}


def gaussian(*shape: int, std: float = 1.0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) * std, jnp.float32)


@functools.cache
def compiled(fmt: Format) -> Callable[..., jax.Array]:
    return jax.jit(fmt.fake)


def error(fmt: Format, x: jax.Array) -> float:
    """Relative, of the whole array; in float64, where squares of the smallest numbers have room."""
    got, want = np.asarray(compiled(fmt)(x), np.float64), np.asarray(x, np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_the_built_in_formats():
    assert tuple(PLUGINS.registry("quant_formats")) == tuple(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_bits_are_what_they_are_said_to_be(name):
    fmt, x = find_format(name, PLUGINS), gaussian(64, 512)
    q = jax.eval_shape(fmt.quantize, x)
    assert fmt.bits == BUILT_IN[name][0] and name.startswith(fmt.name)
    of_tensor = sum(4 for leaf in jax.tree.leaves(q) if leaf.size == 1)  # scales that do not grow
    per_channel = 16 * 64 / x.size if name == "int8" else 0
    assert 8 * (q.nbytes - of_tensor) / x.size == fmt.bits + per_channel
    assert q.bits_per_value == 8 * q.nbytes / x.size and of_tensor <= 4


@pytest.mark.parametrize("std", [1.0, 0.02, 1e-4, 1e-15])
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "nvfp4_one_level"])
def test_error_is_the_same_at_any_scale(name, std):
    assert error(find_format(name, PLUGINS), gaussian(64, 512, std=std)) == pytest.approx(BUILT_IN[name][1], rel=0.06)


def test_one_level_has_a_dead_zone_and_two_have_none():
    """Gradients lie there."""
    one, two = find_format("nvfp4_one_level", PLUGINS), find_format("nvfp4", PLUGINS)
    assert error(one, gaussian(64, 512)) == pytest.approx(0.095, rel=0.02)
    assert error(one, gaussian(64, 512, std=0.02)) > 0.12
    assert error(one, gaussian(64, 512, std=1e-4)) == 1.0
    assert error(two, gaussian(64, 512, std=1e-4)) == pytest.approx(0.095, rel=0.02)


def test_figures_of_other_options():
    x = gaussian(64, 512)
    assert error(Int4(32, rule="symmetric"), x) == pytest.approx(0.0950, rel=0.02)
    assert error(NF4(32), x) == pytest.approx(0.0873, rel=0.02)
    tiles = NVFP4(tiles=True), NVFP4(order="fouroversix", four_over_six="mse", tiles=True)
    assert error(tiles[1], x) == pytest.approx(error(tiles[0], x), rel=0.01)  # 4/6 gains nothing in tiles


def test_names_show_the_options_that_were_changed():
    assert str(NVFP4()) == "nvfp4" and str(NVFP4(order="te", tiles=True)) == "nvfp4(order=te, tiles=True)"
    assert str(Int4()) == "int4" and str(Int4(32)) == "int4(block=32)"
    assert find_format("nvfp4", PLUGINS, tiles=True) == find_format("nvfp4_tiles", PLUGINS) == NVFP4(tiles=True)
    assert len({Int4(), Int4(32), Int8(), NVFP4(), NVFP4(levels=1), MXFP4(), MXFP8()}) == 7


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: find_format("nvfp5", PLUGINS), ["number format 'nvfp5'", "did you mean 'nvfp4'", "mxfp8_rceil"]),
        (lambda: NVFP4(order="cublas"), ["nvfp4: order='cublas'", "torchao, te, compressed_tensors, fouroversix"]),  # pyright: ignore
        (lambda: NVFP4(levels=1, order="te"), ["order=te has two levels", "levels=2"]),
        (lambda: NVFP4(four_over_six="mse"), ["four_over_six", "order=fouroversix"]),
        (lambda: NVFP4(levels=3), ["levels=3", "1, 2"]),  # pyright: ignore
        (lambda: MXFP4(scale="even"), ["mxfp4: scale='even'", "floor, rceil"]),  # pyright: ignore
        (lambda: Int4(33), ["int4: block=33", "even"]),
        (lambda: Int8(rule="q4_0"), ["int8: rule='q4_0'", "no_clipping, symmetric"]),
        (lambda: Int4(scale_dtype="fp32"), ["scale_dtype='fp32'", "float32"]),  # pyright: ignore
        (lambda: NF4(0), ["nf4: block=0", "64"]),
        (lambda: NVFP4().quantize(jnp.ones((4, 100))), ["nvfp4: axis -1 of float32[4, 100] has 100", "16", "112"]),
        (
            lambda: Int4().fake(jnp.ones((96, 8)), axis=0),
            ["int4: axis 0 of float32[96, 8] has 96", "64", "pad it to 128"],
        ),
        (lambda: Int8().quantize(jnp.ones((4, 8), jnp.int32)), ["int32[4, 8] is not floating point"]),
        (lambda: NVFP4().quantize(jnp.ones((4, 16)), axis=2), ["axis 2 of float32[4, 16]", "2 axes"]),
        (lambda: NVFP4(tiles=True).quantize(jnp.ones((8, 16))), ["axis -2 of float32[8, 16] has 8", "16"]),
        (lambda: NVFP4(tiles=True).quantize(jnp.ones((16, 16, 16)), axis=0), ["last two axes", "-3"]),
        (lambda: MXFP4().quantize(jnp.ones((4, 0))), ["has 0 values", "pad it to 32"]),
        (lambda: Int4(32, rule="q4_0").fake(jnp.ones(32), key=jax.random.key(0)), ["q4_0", "rule=no_clipping"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make, says):
    with pytest.raises(FormatError) as caught:
        make()
    assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in says), caught.value


def test_an_axis_can_be_checked_without_an_array():
    abstract = jax.ShapeDtypeStruct((64, 48), jnp.bfloat16)
    assert NVFP4().check(abstract, 1) == -1 and NVFP4().check(abstract, 0) == -2
    with pytest.raises(FormatError, match="48 values"):
        MXFP4().check(abstract, -1)


@dataclass(frozen=True)
class Plain(Format):
    """One fixed scale."""

    step: float = 0.25
    name: ClassVar[str] = "plain"
    element = INT8

    @property
    def bits(self) -> float:
        return 8.0

    def encode(self, x, axis, key, amax):
        return Encoded(INT8.round(x / self.step, key), jnp.full((1,) * x.ndim, self.step))

    def decode(self, encoded, axis):
        return encoded.values * encoded.scales


class Foreign:
    apt_jax_api = "1"

    @hookimpl
    def apt_quant_formats(self):
        return {"plain": Plain, "broken": dict}


def test_anyone_can_add_a_format():
    plugins = load_plugins(disabled=("*",), extra={"foreign": Foreign()})
    fmt = find_format("plain", plugins, step=0.5)
    q = fmt.quantize(jnp.array([0.3, -7.1, 1e9]))
    assert q.dequantize().tolist() == [0.5, -7.0, 63.5] and str(fmt) == "plain(step=0.5)"
    assert {*BUILT_IN} < {*plugins.registry("quant_formats")}
    with pytest.raises(FormatError, match="'broken' of plugin 'foreign' is no Format"):
        find_format("broken", plugins)
    with pytest.raises(PluginError, match="odd"):
        find_format("plain", plugins, odd=1)


def test_registering_imports_no_jax():
    code = (
        "import sys; from apt_jax.core.registry import load_plugins; "
        "load_plugins(disabled=('*',)).registry('quant_formats')['nvfp4']; print('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


BLOCKED = [NVFP4(), NVFP4(levels=1), NVFP4(order="te"), NVFP4(order="compressed_tensors")]
BLOCKED += [NVFP4(order="fouroversix", four_over_six="mse"), MXFP4(), MXFP4("rceil"), MXFP8(), MXFP8("rceil"), NF4()]
BLOCKED += [Int4(), Int4(rule="symmetric"), Int4(32, rule="q4_0", scale_dtype="float16"), Int8(), Int8(128)]


@pytest.mark.parametrize("fmt", BLOCKED, ids=str)
def test_a_block_with_inf_or_nan_becomes_nan_and_no_other_does(fmt):
    x = np.array(gaussian(64, 256))  # enough that vector and scalar code paths of a reduction meet
    clean = x.copy()
    width, rng = fmt.block or 256, np.random.default_rng(1)
    lost = np.zeros_like(x, bool)
    for row in range(0, 64, 2):
        column = rng.integers(256)
        x[row, column] = (np.nan, np.inf, -np.inf)[row // 2 % 3]
        start = column // width * width
        lost[row, start : start + width], clean[row, start : start + width] = True, 0
    for key in (None, jax.random.key(0)) if getattr(fmt, "rule", "") != "q4_0" else (None,):
        got, untouched = (np.asarray(compiled(fmt)(y, key=key)) for y in (x, clean))
        np.testing.assert_array_equal(np.isnan(got), lost)
        np.testing.assert_array_equal(got[~lost], untouched[~lost])


@pytest.mark.parametrize("fmt", [FP8E4M3(), FP8E5M2()], ids=str)
def test_one_scale_for_the_tensor_loses_only_the_value_itself(fmt):
    x = gaussian(16, 32).at[3, 5].set(jnp.nan).at[4, 6].set(jnp.inf).at[5, 7].set(-jnp.inf)
    bad = ~np.isfinite(np.asarray(x))
    got, untouched = (compiled(fmt)(y) for y in (x, jnp.where(bad, 0, x)))
    np.testing.assert_array_equal(np.isnan(np.asarray(got)), bad)
    np.testing.assert_array_equal(np.asarray(got)[~bad], np.asarray(untouched)[~bad])


@pytest.mark.parametrize("fmt", [*BLOCKED, NVFP4(tiles=True), FP8E4M3(), FP8E5M2()], ids=str)
def test_zeros_stay_zeros_and_the_least_numbers_count_as_zeros(fmt):
    for value in (0.0, -0.0, 1e-40):
        got = np.asarray(compiled(fmt)(jnp.full((64, 256), value, jnp.float32)))
        assert (got == 0).all()
    key = jax.random.key(0)
    if getattr(fmt, "rule", "") != "q4_0":
        assert (np.asarray(compiled(fmt)(jnp.zeros((64, 256)), key=key)) == 0).all()


@pytest.mark.parametrize("fmt", [*BLOCKED, NVFP4(tiles=True), FP8E4M3(), FP8E5M2()], ids=str)
def test_huge_numbers_saturate_and_stay_finite(fmt):
    x = gaussian(64, 256) * 1e37
    if fmt == NVFP4(levels=1):
        assert float(jnp.abs(compiled(fmt)(x)).max()) == 6 * 448  # nothing above can hold more
        return
    if isinstance(fmt, Int4) and fmt.rule == "q4_0":
        assert not np.isfinite(np.asarray(compiled(fmt)(x))).any()  # gguf's float16 scales end at 65,504
        return
    assert error(fmt, x) < 0.2


def test_the_largest_value_may_be_given_where_the_tensor_is_a_shard():
    whole = gaussian(64, 256).at[0, 0].set(9.0)
    for fmt in (NVFP4(), NVFP4(order="te"), NVFP4(order="fouroversix", four_over_six="mae"), FP8E4M3()):
        largest = jnp.max(jnp.abs(whole))
        halves = [compiled(fmt)(half, amax=largest) for half in jnp.split(whole, 2)]
        np.testing.assert_array_equal(np.concatenate(halves), np.asarray(compiled(fmt)(whole)))
    lost = compiled(NVFP4())(whole, amax=jnp.inf)
    assert not np.isfinite(np.asarray(lost)).any()


def test_half_precision_inputs_are_computed_in_float32():
    x = gaussian(16, 64).astype(jnp.bfloat16)
    for fmt in (NVFP4(), MXFP8()):
        got = compiled(fmt)(x)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, compiled(fmt)(x.astype(jnp.float32)).astype(jnp.bfloat16))
