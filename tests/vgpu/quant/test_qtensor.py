"""Quantised arrays under the transformations of jax, on meshes, in checkpoints; and what they really weigh."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.formats import FP8E4M3, MXFP4, MXFP8, NF4, NVFP4, Format, Int4, Int8

L, K, N = 3, 128, 64
FORMATS = [NVFP4(), NVFP4(levels=1), NVFP4(tiles=True), MXFP4(), MXFP8(), NF4(), Int4(), Int8(), FP8E4M3()]


@functools.cache
def weights() -> jax.Array:
    layers = np.random.default_rng(0).standard_normal((L, K, N)) * np.array([1, 0.02, 5])[:, None, None]
    return jnp.asarray(layers, jnp.float32)


@functools.cache
def quantizer(fmt: Format, *, axis: int = -2, stacked: bool = False) -> Any:
    function = functools.partial(fmt.quantize, axis=axis)
    return jax.jit(jax.vmap(function) if stacked else function)


dequantize = jax.jit(QTensor.dequantize)


def assert_equal(a: QTensor, b: QTensor) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_it_stands_for_what_fake_gives(fmt, axis):
    w = weights()[0].astype(jnp.bfloat16)
    q = quantizer(fmt, axis=axis)(w)
    assert q.shape == w.shape and q.ndim == 2 and q.size == w.size and q.dtype == jnp.bfloat16 and q.axis == axis
    native = jax.eval_shape(QTensor.unpack, q)
    assert native.dtype == fmt.element.dtype and native.shape == w.shape
    assert all(leaf.ndim == w.ndim for leaf in jax.tree.leaves(q))
    fake = jax.jit(functools.partial(fmt.fake, axis=axis))(w)
    np.testing.assert_array_equal(dequantize(q), fake)
    assert jax.eval_shape(functools.partial(fmt.quantize, axis=axis + 2), w).axis == axis


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_layers_can_be_stacked_scanned_and_indexed(fmt):
    w_LKN = weights()
    stacked = quantizer(fmt, stacked=True)(w_LKN)
    assert stacked.shape == w_LKN.shape
    single = [quantizer(fmt)(w) for w in w_LKN]
    for layer, one in enumerate(single):
        assert_equal(stacked[layer], one)

    @jax.jit
    def scanned(stacked: QTensor) -> jax.Array:
        return jax.lax.scan(lambda carry, q: (carry, q.dequantize()), 0, stacked)[1]

    want = np.stack([dequantize(q) for q in single])
    np.testing.assert_array_equal(scanned(stacked), want)
    np.testing.assert_array_equal(dequantize(stacked), want)
    np.testing.assert_array_equal(jax.jit(jax.vmap(QTensor.dequantize))(stacked), want)
    again = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    assert_equal(again, stacked)


def test_a_scan_may_quantise_too():
    def body(carry: jax.Array, w: jax.Array) -> tuple[jax.Array, QTensor]:
        return carry, NVFP4().quantize(w, axis=-2)

    _, stacked = jax.jit(lambda w: jax.lax.scan(body, jnp.float32(0), w))(weights())
    assert_equal(stacked, quantizer(NVFP4(), stacked=True)(weights()))


def test_tiles_are_the_same_for_a_matrix_and_its_transpose():
    w = weights()[1]
    for fmt in (NVFP4(tiles=True), NVFP4(order="te", tiles=True)):
        q = quantizer(fmt)(w)
        assert_equal(q.mT, quantizer(fmt, axis=-1)(w.mT))
        for axis in (-1, -2):  # also where the other axis is the packed one
            np.testing.assert_array_equal(dequantize(q).mT, dequantize(quantizer(fmt, axis=axis)(w.mT)))
    rows = NVFP4()
    np.testing.assert_array_equal(dequantize(quantizer(rows)(w).mT), dequantize(quantizer(rows)(w)).mT)
    columns = dequantize(quantizer(rows)(w.mT))
    assert (np.asarray(columns) != np.asarray(dequantize(quantizer(rows)(w))).T).any()


def test_codes_are_packed_low_nibble_first_along_the_axis():
    w = jnp.array([[0.5, 1.0, -6.0, 3.0] + [0.0] * 12] * 2) * jnp.array([[1.0], [2.0]])
    q = quantizer(NVFP4(levels=1), axis=-1)(w)
    assert q.codes.dtype == jnp.uint8 and q.codes.shape == (2, 8)
    assert [hex(byte) for byte in q.codes[0, :2].tolist()] == ["0x21", "0x5f"]
    assert q.scales.astype(jnp.float32).tolist() == [[1.0], [2.0]] and q.tensor_scale is None


@pytest.mark.parametrize(("fmt", "most"), [(NVFP4(), 4.5), (MXFP4(), 4.25), (Int4(), 4.25), (NF4(), 4.25)], ids=str)
def test_bits_on_devices_and_on_disk_are_as_promised(fmt, most, tmp_path):
    """On disk without compression, so that no luck with the data is needed; NVFP4 has 4 bytes more for the tensor."""
    w = jnp.asarray(np.random.default_rng(1).standard_normal((512, 1024)), jnp.float32)
    q = quantizer(fmt)(w)
    of_tensor = 0 if q.tensor_scale is None else 4
    assert 8 * (q.nbytes - of_tensor) <= most * w.size
    shards = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(q)]
    assert len({*shards}) == len(shards)
    compiled = jax.jit(QTensor.dequantize).lower(q).compile().memory_analysis()
    assert compiled is not None and compiled.argument_size_in_bytes - of_tensor <= most * w.size / 8

    for path, leaf in jax.tree_util.tree_leaves_with_path(q):
        array = np.asarray(leaf)
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(tmp_path / jax.tree_util.keystr(path))},
            "metadata": {"compressor": None},
        }
        store = ts.open(spec, create=True, dtype=ts.dtype(array.dtype), shape=array.shape).result()
        store.write(array).result()
    metadata = sum(file.stat().st_size for file in tmp_path.rglob(".z*"))
    assert 8 * (folder_bytes(tmp_path) - metadata - of_tensor) <= most * w.size and metadata < 2000

    save(tmp_path / "orbax", q)
    assert 8 * (folder_bytes(tmp_path / "orbax") - 8192) <= most * w.size  # less its metadata


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_checkpoints_are_exact(fmt, tmp_path):
    q = quantizer(fmt, stacked=True)(weights())
    save(tmp_path / "step", {"mlp": q})
    restored = restore(tmp_path / "step", {"mlp": jax.tree.map(abstract, q)})["mlp"]
    assert isinstance(restored, QTensor)
    assert_equal(restored, q)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("fmt", [NVFP4(), NVFP4(tiles=True), MXFP4(), Int4(32), Int8(), FP8E4M3()], ids=str)
def test_codes_and_scales_are_cut_where_the_array_is(fmt, axis_type, tmp_path):
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(axis_type,) * 2)
    spec = PartitionSpec(None, "tensor", "fsdp")
    w = jax.device_put(weights(), NamedSharding(mesh, spec))
    plain = quantizer(fmt, stacked=True)(weights())
    shardings = jax.eval_shape(quantizer(fmt, stacked=True), w).shardings(mesh, spec)
    assert shardings.codes.spec == spec
    quantize = jax.jit(jax.vmap(functools.partial(fmt.quantize, axis=-2)), out_shardings=shardings)
    q = quantize(w)
    assert_equal(q, plain)
    assert q.codes.addressable_shards[0].data.nbytes * 8 == q.codes.nbytes
    if fmt.block:
        assert q.scales.addressable_shards[0].data.nbytes * 8 == q.scales.nbytes
    np.testing.assert_array_equal(dequantize(q), dequantize(plain))
    assert_equal(jax.device_put(plain, shardings), q)
    save(tmp_path / "step", q)
    target = jax.tree.map(lambda leaf, sharding: abstract(leaf, sharding), q, shardings)
    restored = restore(tmp_path / "step", target)
    assert restored.scales.sharding == q.scales.sharding
    assert_equal(restored, q)


@pytest.mark.parametrize("fmt", [NVFP4(), Int4(32)], ids=str)
def test_scales_of_channels_go_with_the_array(fmt):
    """Decoded, transposed, taken by layer and cut over devices; 16 bits for each of K channels."""
    scales = jnp.asarray(np.random.default_rng(2).uniform(0.5, 2, (L, K, 1)), jnp.bfloat16)
    plain = quantizer(fmt, stacked=True)(weights())
    q = dataclasses.replace(plain, channel_scales=scales)
    want = np.asarray(dequantize(plain)) * np.asarray(scales, np.float32)
    np.testing.assert_array_equal(dequantize(q), want)
    np.testing.assert_array_equal(dequantize(q.mT), want.mT)
    np.testing.assert_array_equal(dequantize(q[1]), want[1])
    assert q.bits_per_value == plain.bits_per_value + 16 / N
    mesh = jax.make_mesh((4,), ("fsdp",))
    cut = jax.device_put(q, q.shardings(mesh, PartitionSpec(None, "fsdp")))
    assert cut.channel_scales is not None and cut.channel_scales.addressable_shards[0].data.shape == (L, K // 4, 1)
    np.testing.assert_array_equal(dequantize(cut), want)


def test_what_cannot_be_cut_or_indexed_is_said():
    mesh = jax.make_mesh((8,), ("fsdp",))
    q = jax.eval_shape(quantizer(NVFP4()), weights()[0, :64])
    with pytest.raises(FormatError, match=r"nvfp4: fsdp cuts axis 0 of \[64, 64\] into 8 parts.*divisor of 4"):
        q.shardings(mesh, PartitionSpec("fsdp"))
    stacked = quantizer(NVFP4(), stacked=True)(weights())
    with pytest.raises(FormatError, match="leading axis only"):
        stacked[0, 1]
    with pytest.raises(FormatError, match="quantised one"):
        stacked[0][1]
    with pytest.raises(FormatError, match="last two"):
        jax.eval_shape(lambda x: NVFP4().quantize(x, axis=0).mT, jnp.ones((16, 2, 2)))


def abstract(leaf: jax.Array, sharding: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or leaf.sharding)


def save(folder: Path, tree: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)


def restore(folder: Path, target: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, target)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
