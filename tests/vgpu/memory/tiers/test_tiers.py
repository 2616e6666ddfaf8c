"""Each kind of memory gives back what it was given, and says what went wrong where it cannot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from apt_jax.vgpu.memory.tiers import TierError, create_vgpu_stack
from apt_jax.vgpu.memory.tiers.disk import Disk
from apt_jax.vgpu.memory.tiers.memory_spaces import Device, PinnedHost

DTYPES = [
    *(np.float32, np.float16, np.int32, np.int8, np.uint8, np.bool_, np.complex64),
    *(getattr(ml_dtypes, name) for name in ("bfloat16", "int4", "uint4", "int2", "uint2", "float4_e2m1fn")),
    *(getattr(ml_dtypes, f"float8_{name}") for name in ("e4m3fn", "e5m2", "e8m0fnu", "e3m4", "e4m3b11fnuz")),
]


def bits(array) -> bytes:
    return np.asarray(array).tobytes()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("tier", [Device, PinnedHost, Disk])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_comes_back_bit_for_bit(tier, dtype, tmp_path):
    tier = tier(path=tmp_path) if tier is Disk else tier()
    normal = np.random.default_rng(0).normal(size=(3, 5)) * 2
    leaves = [np.asarray(x).astype(dtype) for x in (normal, normal[0, 0], normal[:0], normal[:, ::2])]
    back = tier.read("k", tier.write("k", leaves, [None] * len(leaves)))
    assert [(x.shape, x.dtype, bits(x)) for x in back] == [(x.shape, x.dtype, bits(x)) for x in leaves]


def test_nan_payloads_and_negative_zeros_survive(tmp_path):
    raw = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001], np.uint32).view(np.float32)
    tier = Disk(path=tmp_path)
    assert bits(tier.read("k", tier.write("k", [raw], [None]))[0]) == raw.tobytes()


def test_arrays_lie_in_the_memory_that_is_named_and_host_copies_are_copies():
    x = jax.device_put(np.arange(8.0, dtype=np.float32), jax.devices()[3])
    (host,) = PinnedHost().write("k", [x], [x.sharding])
    assert host.sharding.memory_kind == "pinned_host" and host.devices() == x.devices()
    assert host.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()
    (back,) = Device().write("k", [host], [x.sharding])
    assert back.sharding == x.sharding and bits(back) == bits(x)
    assert Device().holds([back], [x.sharding]) and not Device().holds([host], [x.sharding])


def test_a_sharded_array_is_sharded_again_when_it_returns_from_disk(tmp_path):
    sharding = jax.sharding.NamedSharding(jax.make_mesh((4, 2), ("a", "b")), jax.P("a", "b"))
    x = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), sharding)
    levels = [{"tier": "device", "capacity_mb": 1}, {"tier": "disk", "capacity_mb": 1, "path": tmp_path}]
    with create_vgpu_stack(levels) as stack:
        stack.put("x", x, level=1)
        back = stack.get("x")
        assert back.sharding == sharding and bits(back) == bits(x)


def test_a_numpy_array_may_change_after_it_was_given():
    for tier in (Device(), PinnedHost()):
        buffer = np.zeros(2**14 + 16, np.float32)
        offset = (-buffer.ctypes.data % 64) // 4
        given = buffer[offset : offset + 2**14]  # aligned, so that jax could use it in place
        stored = tier.write("k", [given], [None])
        given[:] = 1
        assert not np.asarray(stored[0]).any()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_float_data_costs_no_more_than_its_size_on_disk(dtype, tmp_path):
    x = np.random.default_rng(0).normal(size=(256, 256)).astype(dtype)
    tier = Disk(path=tmp_path)
    tier.write("k", [x], [None])
    assert sum(path.stat().st_size for path in files(tmp_path)) < 0.97 * x.nbytes
    assert len([path for path in files(tmp_path) if path.name != "zarr.json"]) == 1  # one chunk


def test_what_does_not_compress_costs_its_size_and_a_few_hundred_bytes(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, 2**18).astype(np.uint8)
    tier = Disk(path=tmp_path)
    tier.write("k", [x], [None])
    assert sum(path.stat().st_size for path in files(tmp_path)) < 1.001 * x.nbytes + 1000


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
def test_a_flipped_bit_is_one_line_with_key_and_path(where, tmp_path):
    tier = Disk(path=tmp_path)
    stored = tier.write("layers/3", [np.random.default_rng(0).normal(size=1000).astype(np.float32)], [None])
    (chunk,) = [path for path in files(tmp_path) if path.name != "zarr.json"]
    data = bytearray(chunk.read_bytes())
    data[int(where * len(data))] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(TierError) as caught:
        tier.read("layers/3", stored)
    assert "'layers/3' cannot be read from" in str(caught.value) and str(stored.folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["chunk", "metadata", "folder", "truncated"])
def test_a_missing_or_short_file_is_never_read_as_zeros(which, tmp_path):
    tier = Disk(path=tmp_path)
    stored = tier.write("k", [np.ones(100, np.float32)], [None])
    (chunk,) = [path for path in files(tmp_path) if path.name != "zarr.json"]
    match which:
        case "chunk":
            chunk.unlink()
        case "metadata":
            (stored.folder / "0" / "zarr.json").unlink()
        case "folder":
            shutil.rmtree(stored.folder)
        case "truncated":
            chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(TierError, match=r"^'k' cannot be read from \S+: [^\n]+$"):
        tier.read("k", stored)


def test_zeros_are_stored_like_other_numbers(tmp_path):
    tier = Disk(path=tmp_path)
    (back,) = tier.read("k", tier.write("k", [np.zeros(10, np.float32)], [None]))
    assert bits(back) == bytes(40)


def test_a_vanished_directory_is_one_line(tmp_path):
    tier = Disk(path=tmp_path / "spill")
    shutil.rmtree(tmp_path / "spill")
    with pytest.raises(TierError, match=r"^'k' cannot be written to \S+: No such file or directory$"):
        tier.write("k", [np.ones(3)], [None])
    assert not (tmp_path / "spill").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TierError, match=r"^tier 'disk': cannot write to \S+: [^\n]+$"):
        Disk(path=tmp_path / "file" / "spill")


def test_compression_can_be_left_out(tmp_path):
    x = np.zeros(2**16, np.float32)
    plain, packed = Disk(path=tmp_path / "a", compress=False), Disk(path=tmp_path / "b")
    for tier in (plain, packed):
        assert bits(tier.read("k", tier.write("k", [x], [None]))[0]) == bits(x)
    sizes = [sum(path.stat().st_size for path in files(tmp_path / name)) for name in "ab"]
    assert sizes[0] > x.nbytes > 10 * sizes[1]


def test_nothing_is_left_behind(tmp_path):
    tier = Disk(path=tmp_path)
    stored = tier.write("a/../b " + "long" * 200, [np.ones(3)], [None])  # not a path outside, not too long a name
    assert stored.folder.parent == tier.path
    tier.delete(stored)
    assert files(tmp_path) == []
    tier.close()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_closes_nothing_leaves_nothing_and_its_forks_take_nothing(tmp_path):
    code = """
import os, sys
import numpy as np
from apt_jax.vgpu.memory.tiers.disk import Disk
tier = Disk(path=sys.argv[1])
stored = tier.write("k", [np.ones(3)], [None])
if os.fork() == 0:
    sys.exit()
os.wait()
assert tier.read("k", stored)[0].tolist() == [1, 1, 1]
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert list(tmp_path.iterdir()) == []


def test_values_that_would_change_are_refused():
    with create_vgpu_stack([{"tier": "device", "capacity_mb": 1}]) as stack:
        gone = jnp.ones(3)
        gone.delete()
        for value, words in (
            (np.ones(3, np.float64), "jax cannot hold float64"),
            ({"a": "text"}, r"'k\['a'\]': jax cannot hold"),
            (jax.random.key(0), "store jax.random.key_data"),
            (gone, "deleted"),
        ):
            with pytest.raises(TierError, match=words):
                stack.put("k", value)
        assert stack.keys() == []
