"""Memory that fails: every value stays readable, and the line says what happened."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from apt_jax.vgpu.memory.tiers import Level, TierError, VGPUStack
from apt_jax.vgpu.memory.tiers.disk import Disk
from apt_jax.vgpu.memory.tiers.memory_spaces import Device, PinnedHost
from tests.vgpu.memory.tiers.spies import Failing

NUMBERS = 1024
SIZE = 4 * NUMBERS


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, NUMBERS, dtype=np.uint32)


def check(stack: VGPUStack, expected: dict[str, int]) -> None:
    for key, seed in expected.items():
        assert np.array_equal(np.asarray(stack.get(key)), numbers(seed)), key


def test_a_failing_write_leaves_every_value_where_it_was(tmp_path, caplog):
    disk = Failing(Disk(path=tmp_path))
    stack = VGPUStack([Level("device", Device(), 2 * SIZE), Level("disk", disk, 99 * SIZE)])
    for index in range(4):
        stack.put(str(index), numbers(index))
    disk.broken = "No space left on device"
    with caplog.at_level(logging.WARNING), pytest.raises(TierError) as caught:
        stack.put("4", numbers(4))
    assert str(caught.value) == "'4' cannot be written: No space left on device; it is not stored"
    assert "'2' cannot be written: No space left on device; it stays in device" in caplog.text
    with pytest.raises(
        TierError, match="'2' cannot be written: No space left on device; its former value is unchanged"
    ):
        stack.put("2", numbers(9), level=1)
    assert [stack.level_of(str(i)) for i in range(4)] == [1, 1, 0, 0]
    check(stack, {str(i): i for i in range(4)})  # the lower ones are served from where they lie
    assert stack.statistics().failed_writes > 1 and "stays in device" in caplog.text
    assert [level.used for level in stack.statistics().levels] == [2 * SIZE, 2 * SIZE]
    disk.broken = ""
    stack.put("4", numbers(4))
    check(stack, {str(i): i for i in range(5)})


def test_a_failing_device_leaves_the_value_below(tmp_path):
    device = Failing(Device())
    stack = VGPUStack([Level("device", device, 2 * SIZE), Level("disk", Disk(path=tmp_path), 9 * SIZE)])
    stack.put("a", numbers(0), level=1)
    device.broken = "RESOURCE_EXHAUSTED"
    for _ in range(2):
        with pytest.raises(TierError, match="'a' cannot be written: RESOURCE_EXHAUSTED"):
            stack.get("a", pin=True)
    device.broken = ""
    check(stack, {"a": 0})
    with pytest.raises(TierError, match="not pinned"):
        stack.unpin("a")


def test_an_unreadable_file_is_met_by_get_and_kept_by_prefetch(tmp_path):
    stack = VGPUStack([Level("device", Device(), SIZE), Level("disk", Disk(path=tmp_path), 9 * SIZE)])
    stack.put("a", numbers(0), level=1)
    stack.put("b", numbers(1), level=1)
    (folder,) = tmp_path.iterdir()
    (chunk,) = [path for path in folder.glob("a.*/**/*") if path.is_file() and path.name != "zarr.json"]
    chunk.unlink()
    with pytest.raises(TierError, match=r"^'a' cannot be read from \S+: [^\n]*missing[^\n]*$"):
        stack.prefetch("a").result()
    with pytest.raises(TierError, match="'a' cannot be read from"):
        stack.get("a")
    check(stack, {"b": 1})
    stack.put("a", numbers(2))
    check(stack, {"a": 2, "b": 1})


def test_a_vanished_directory_is_one_line_and_the_rest_goes_on(tmp_path):
    levels = [("device", Device()), ("pinned_host", PinnedHost()), ("disk", Disk(path=tmp_path / "spill"))]
    stack = VGPUStack([Level(name, tier, 2 * SIZE) for name, tier in levels])
    for index in range(5):
        stack.put(str(index), numbers(index))
    shutil.rmtree(tmp_path / "spill")
    with pytest.raises(TierError, match=r"^'0' cannot be read from \S+: [^\n]+$"):
        stack.get("0")
    check(stack, {str(i): i for i in range(1, 5)})
    with pytest.raises(TierError, match=r"'\d' cannot be written to \S+: No such file or directory; it is not stored$"):
        stack.put("5", numbers(5))
    check(stack, {str(i): i for i in range(1, 5)})
    stack.close()


def test_a_write_that_fails_half_way_leaves_no_file(tmp_path, monkeypatch):
    stack = VGPUStack([Level("device", Device(), SIZE), Level("disk", Disk(path=tmp_path), 9 * SIZE)])
    stack.put("a", numbers(0))

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(TierError, match=r"'b' cannot be written to \S+: No space left on device; it is not stored"):
            stack.put("b", numbers(1))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    check(stack, {"a": 0})


def test_an_interrupt_in_the_middle_of_a_copy_changes_nothing(tmp_path):
    class Interrupted(Disk):
        def write(self, key, leaves, homes):
            raise KeyboardInterrupt

    stack = VGPUStack([Level("device", Device(), SIZE), Level("disk", Interrupted(path=tmp_path), 9 * SIZE)])
    stack.put("a", numbers(0))
    for level in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            stack.put("b", numbers(1), level=level)
    assert [level.used for level in stack.statistics().levels] == [SIZE, 0]
    check(stack, {"a": 0})
    stack.put("a", jax.device_put(numbers(2)))
    check(stack, {"a": 2})


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own takes root")
def test_a_full_file_system(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        stack = VGPUStack([Level("device", Device(), 2 * SIZE), Level("disk", Disk(path=tmp_path), 99 * SIZE)])
        stored: dict[str, int] = {}
        with pytest.raises(TierError, match=r"No space left|ENOSPC|RESOURCE_EXHAUSTED"):
            for index in range(50):
                stack.put(str(index), numbers(index))
                stored[str(index)] = index
        assert 4 < len(stored) < 20
        check(stack, stored)
        stack.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
