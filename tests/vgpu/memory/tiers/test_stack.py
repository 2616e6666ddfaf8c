"""What a stack promises, case by case; the sum of it is in test_fuzz.py."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.errors import PluginError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.memory.tiers import FarthestInPlan, Level, TierError, VGPUStack, create_vgpu_stack
from apt_jax.vgpu.memory.tiers.disk import Disk
from apt_jax.vgpu.memory.tiers.memory_spaces import Device, PinnedHost
from apt_jax.vgpu.memory.tiers.statistics import render
from apt_jax.vgpu.memory.tiers.victims import Candidate, LeastRecentlyUsed


def value(number: float, size: int = 1) -> jax.Array:
    """`size` times 4 bytes."""
    return jnp.full(size, number, jnp.float32)


def make(*capacities: int, path=None, victims=None) -> VGPUStack:
    """Levels of so many 4-byte numbers."""
    tiers = [Device(), PinnedHost(), Disk(path=path)]
    names = ("device", "pinned_host", "disk")
    levels = [Level(n, t, 4 * c) for n, t, c in zip(names, tiers, capacities, strict=False)]
    return VGPUStack(levels, victims=victims)


def levels(stack: VGPUStack) -> str:
    return " ".join(f"{key}{stack.level_of(key)}" for key in stack)


def test_full_levels_send_values_down_and_requests_bring_them_up(tmp_path):
    stack = make(2, 2, 9, path=tmp_path)
    for index, key in enumerate("abcde"):
        assert stack.put(key, value(index)) == 0
    assert levels(stack) == "a2 b1 c1 d0 e0"
    assert float(stack.get("a")[0]) == 0.0
    assert levels(stack) == "a0 b2 c1 d1 e0"
    assert [float(stack.get(key)[0]) for key in "abcde"] == [0, 1, 2, 3, 4]


def test_values_are_not_written_again_while_their_copy_on_disk_is_good(tmp_path):
    stack = make(1, path=tmp_path)
    stack = VGPUStack([Level("device", Device(), 4), Level("disk", Disk(path=tmp_path), 40)])
    stack.put("a", value(1), level=1)
    stack.put("b", value(2), level=1)
    for _ in range(3):
        stack.get("a"), stack.get("b")
    assert stack.statistics().levels[1].bytes_in == 8
    assert stack.statistics().demotions == 5
    stack.put("b", value(3))
    stack.get("a")
    assert stack.statistics().levels[1].bytes_in == 12
    assert float(stack.get("b")[0]) == 3


def test_a_value_larger_than_every_level_is_refused_with_the_sizes():
    stack = make(2, 3)
    with pytest.raises(TierError) as caught:
        stack.put("big", value(0, 4))
    assert str(caught.value) == (
        "'big' has 16 bytes, more than any level can hold (device 8, pinned_host 12); store it in parts"
    )
    assert stack.put("middle", value(0, 3)) == 1
    assert stack.get("middle").sharding.memory_kind == "pinned_host"  # it does not fit above


def test_a_full_stack_says_so_and_keeps_everything():
    stack = make(1, 1)
    stack.put("a", value(1))
    stack.put("b", value(2))
    with pytest.raises(TierError, match="'c' has 4 bytes, and no level has room for it; free bytes: device 0 of 4"):
        stack.put("c", value(3))
    assert levels(stack) == "a1 b0"
    assert float(stack.get("a")[0]) == 1 and levels(stack) == "a1 b0"  # no room to swap them


def test_pins_priorities_and_plans_decide_who_leaves():
    stack = make(2, 9)
    stack.put("a", value(1))
    stack.put("b", value(2))
    stack.pin("a")
    stack.put("c", value(3))
    assert levels(stack) == "a0 b1 c0"
    stack.unpin("a")
    stack.put("d", value(4), priority=9)
    stack.put("e", value(5))
    assert levels(stack) == "a1 b1 c1 d0 e0"
    with stack.planned(["e", "b", "e", "d"]):
        stack.get("e")
        stack.get("b")
        assert levels(stack) == "a1 b0 c1 d1 e0"
    stack.get("a")
    assert stack.level_of("e") == 1  # as before the plan
    with pytest.raises(TierError, match="'a' is not pinned"):
        stack.unpin("a")


@pytest.mark.parametrize("capacity, lru, belady", [(12, 0, 0.25), (24, 0, 0.5), (43, 0, 0.9)])
def test_hit_rates_of_forward_sweeps(capacity, lru, belady):
    """48 layers round and round: LRU hits nothing, the plan-aware policy nearly what level 0 holds of them."""
    keys = [str(index) for index in range(48)]
    for victims, rate in ((None, lru), (FarthestInPlan(keys, cyclic=True), belady)):
        stack = make(capacity, 99, victims=victims)
        for key in keys:
            stack.put(key, value(0))
        for key in keys * 2:
            stack.get(key)
        stack.reset_statistics()
        for key in keys * 4:
            stack.get(key)
        assert stack.statistics().l0_hit_rate == pytest.approx(rate, abs=0.03)


def test_farthest_in_plan_counts_on_and_round():
    plan = FarthestInPlan(["a", "b", "a", "c"], cyclic=True)
    assert [plan.distance(key) for key in "abcx"] == [0, 1, 3, float("inf")]
    plan.used("a")
    assert [plan.distance(key) for key in "abc"] == [1, 0, 2]
    plan.used("c")
    assert [plan.distance(key) for key in "abc"] == [0, 1, 3]
    candidates = [Candidate(key, 4, 5, tick) for tick, key in enumerate("xaby")]
    assert plan.choose(0, candidates) == "x" and LeastRecentlyUsed().choose(0, candidates[1:]) == "a"
    once = FarthestInPlan(["a", "b"])
    once.used("b")
    assert once.distance("a") == float("inf")


def test_a_policy_may_not_invent_keys():
    class Wrong(LeastRecentlyUsed):
        def choose(self, level, candidates):
            return "nobody"

    stack = make(1, 1, victims=Wrong())
    stack.put("a", value(1))
    with pytest.raises(TierError, match="Wrong chose 'nobody', which is no candidate"):
        stack.put("b", value(2))


def test_replacing_keeps_pins_and_priority_and_may_change_size_and_structure():
    stack = make(3, 9)
    stack.put("a", value(1), priority=8)
    stack.pin("a")
    assert stack.put("a", {"w": value(2), "b": value(3)}) == 0
    assert stack.nbytes("a") == 8 and float(stack.get("a")["b"][0]) == 3
    stack.put("b", value(4))
    stack.put("c", value(5))
    assert levels(stack) == "a0 b1 c0"
    stack.put("a", value(6), level=1)
    assert stack.level_of("a") == 1 and stack.statistics().levels[0].used == 4


def test_unknown_keys_levels_and_closed_stacks_are_one_line():
    stack = make(2)
    stack.put("layers/0", value(0))
    for call in (stack.get, stack.prefetch, stack.pin, stack.unpin, stack.remove, stack.level_of, stack.nbytes):
        with pytest.raises(
            TierError, match=r"^no value 'layer/0' in the stack \(did you mean 'layers/0'\?\); it has 1$"
        ):
            call("layer/0")
    with pytest.raises(TierError, match="level 3: the stack has levels 0 to 0"):
        stack.put("a", value(0), level=3)
    stack.close()
    stack.close()
    for call in (lambda: stack.get("layers/0"), lambda: stack.put("a", value(0)), lambda: stack.prefetch("a")):
        with pytest.raises(TierError, match="closed"):
            call()


def test_a_donated_array_is_named():
    stack = make(2)
    x = jnp.ones(1, jnp.float32)
    stack.put("x", x)
    x.delete()
    with pytest.raises(TierError, match="'x' was deleted in device; never donate arrays that a stack holds"):
        stack.get("x")


def test_prefetch_from_many_threads_loses_nothing(tmp_path):
    stack = make(24, 40, 400, path=tmp_path)
    expected = {f"k{index}": float(index) for index in range(24)}
    for key, number in expected.items():
        stack.put(key, value(number, 1 + int(number) % 5))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(150):
                key = f"k{rng.integers(24)}"
                match rng.integers(4):
                    case 0:
                        stack.prefetch(key)
                    case 1:
                        own = f"t{seed}"
                        stack.put(own, value(seed, 3))
                        assert float(np.asarray(stack.get(own))[0]) == seed
                    case 2:
                        found = stack.get(key, pin=True)
                        assert not rng.integers(2) or float(np.asarray(found)[-1]) == expected[key]
                        stack.unpin(key)
                    case 3:
                        stack.put(key, value(expected[key], 1 + int(expected[key]) % 5))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for key, number in expected.items():
        assert np.asarray(stack.get(key)).tolist() == [number] * (1 + int(number) % 5)
    assert all(level.peak <= level.capacity for level in stack.statistics().levels)
    stack.close()
    assert list(tmp_path.iterdir()) == []


def test_a_request_for_level_0_does_not_wait_for_a_copy_under_way(tmp_path):
    started, go_on = threading.Event(), threading.Event()

    class Slow(Disk):
        def read(self, key, stored):
            started.set()
            assert go_on.wait(60)
            return super().read(key, stored)

    with VGPUStack([Level("device", Device(), 8), Level("disk", Slow(path=tmp_path), 40)]) as stack:
        stack.put("far", value(1), level=1)
        stack.put("near", value(2))
        future = stack.prefetch("far")
        assert started.wait(60)
        assert float(stack.get("near")[0]) == 2  # would never return if it waited
        stack.put("near", value(3))
        assert not future.done() and stack.statistics().levels[0].used == 8  # the copy in flight counts
        go_on.set()
        future.result(60)
        assert stack.level_of("far") == 0 and stack.statistics().prefetches == 1


def test_statistics_are_rendered_as_a_block_for_the_stack_and_one_per_level(capsys):
    stack = make(2, 2)
    for index, key in enumerate("abc"):
        stack.put(key, value(index))
    stack.get("a"), stack.get("a")
    stack.print_stats()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "vGPU stack",
        "  requests     2",
        "  L0 hit rate  50.0%",
        "  promotions   1",
        "  demotions    2",
        "  tensors      3",
    ]
    assert lines[7:12] == [
        "L0 device",
        "  used         8 B of 8 B (100.0%), at most 8 B",
        "  tensors      2",
        "  hits         1 of 2 (50.0%)",
        "  moved        0 up, 2 down",
    ]
    assert lines[14] == "L1 pinned_host"
    figures = stack.statistics()
    assert 0 < figures.stall_fraction < 1 and figures.levels[1].bandwidth_in > 0
    assert "failed" not in render(figures)
    stack.reset_statistics()
    assert stack.statistics().requests == 0 and stack.statistics().levels[0].used == 8


def test_settings_in_the_documented_form_make_a_stack(tmp_path):
    settings = [
        {"capacity_mb": 6400, "device": "cuda:0", "speed_gbps": 900},
        {"capacity_mb": 8000, "device": "cpu", "speed_gbps": 50},
        {"capacity_mb": 32000, "device": "ssd", "speed_gbps": 7, "path": tmp_path},
        {"capacity_mb": 64000, "tier": "disk", "name": "remote", "path": tmp_path / "mounted"},
    ]
    with create_vgpu_stack(settings) as stack:
        names = [(level.name, level.capacity) for level in stack.statistics().levels]
        assert names == [
            (n, c * 2**20)
            for n, c in zip(("device", "pinned_host", "disk", "remote"), (6400, 8000, 32000, 64000), strict=True)
        ]
        stack.put("x", value(1), level=3)
        assert float(stack.get("x")[0]) == 1


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"tier": "device"}, "level 0: capacity_mb is None"),
        ({"tier": "device", "capacity_mb": 0}, "level 0: capacity_mb is 0"),
        ({"device": "sdd", "capacity_mb": 1}, r"level 0: device is 'sdd' \(did you mean 'ssd'\?\); use cpu, cuda"),
        ({"device": "cuda:99", "capacity_mb": 1}, "tier 'device': no device 99; there are 0 to 7"),
        ({"tier": "tape", "capacity_mb": 1}, "level 0: unknown memory tier 'tape'; available: device, disk, pinned"),
        ({"tier": "disk", "capacity_mb": 1, "where": "x"}, "memory tier 'disk' failed: .*'where'"),
    ],
)
def test_wrong_settings_are_one_line(settings, words):
    with pytest.raises((TierError, PluginError), match=words):
        create_vgpu_stack([settings])


def test_a_plugin_can_bring_a_tier():
    class Cellar(PinnedHost):
        pass

    class Plugin:
        apt_jax_api = "1"

        @staticmethod
        def apt_memory_tiers():
            return {"cellar": Cellar}

    from apt_jax import hookimpl

    Plugin.apt_memory_tiers = staticmethod(hookimpl(Plugin.apt_memory_tiers))
    plugins = load_plugins(extra={"cellar": Plugin()}, disabled=("*",))
    with create_vgpu_stack([{"tier": "cellar", "capacity_mb": 1}], plugins=plugins) as stack:
        stack.put("x", value(1))
        assert stack.get("x").sharding.memory_kind == "pinned_host"


def test_what_is_put_later_is_there_for_what_was_asked_after_it():
    stack = make(1, 2)
    stack.put("a", value(1))
    futures = [stack.put_later("b", value(2), level=1), stack.put_later("big", value(0, 9))]
    assert futures[0].result(60) == 1 and float(np.asarray(stack.get("b"))[0]) == 2
    with pytest.raises(TierError, match="'big' has 36 bytes, more than any level can hold"):
        futures[1].result(60)
    assert "big" not in stack


def test_waiting_for_a_copy_under_way_is_stall_time(tmp_path):
    go_on = threading.Event()

    class Slow(Disk):
        def read(self, key, stored):
            assert go_on.wait(60)
            return super().read(key, stored)

    with VGPUStack([Level("device", Device(), 8), Level("disk", Slow(path=tmp_path), 40)]) as stack:
        stack.put("far", value(1), level=1)
        stack.reset_statistics()
        stack.prefetch("far")
        assert stack.statistics().stall_seconds == 0
        timer = threading.Timer(0.2, go_on.set)
        timer.start()
        assert float(stack.get("far")[0]) == 1
        figures = stack.statistics()
        assert 0.05 < figures.stall_seconds <= figures.elapsed_seconds
        assert figures.l0_hit_rate == 1  # it was on its way


def test_values_are_removed_from_every_level_and_while_they_move(tmp_path):
    go_on = threading.Event()

    class Slow(Disk):
        def read(self, key, stored):
            assert go_on.wait(60)
            return super().read(key, stored)

    with VGPUStack([Level("device", Device(), 8), Level("disk", Slow(path=tmp_path), 40)]) as stack:
        for key in ("idle", "moving"):
            stack.put(key, value(1), level=1)
        future = stack.prefetch("moving")
        while not stack._mover.entries["moving"].moving:
            pass
        stack.remove("idle")  # does not wait
        assert not future.done()
        timer = threading.Timer(0.05, go_on.set)
        timer.start()
        stack.remove("moving")
        assert future.done() and stack.keys() == []
        assert [level.used for level in stack.statistics().levels] == [0, 0]
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
