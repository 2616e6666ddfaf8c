"""Random use of a real stack beside the simulator: nothing lost, nothing altered, no level over its capacity."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apt_jax.vgpu.memory.tiers import Level, TierError, VGPUStack
from apt_jax.vgpu.memory.tiers.disk import Disk
from apt_jax.vgpu.memory.tiers.memory_spaces import Device, PinnedHost
from tests.vgpu.memory.tiers.simulator import Refused, Simulator
from tests.vgpu.memory.tiers.spies import Watched

KIB = 1024
DTYPES = (np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.uint8)
COUNTERS = ("hits", "misses", "promotions", "demotions", "bytes_in", "bytes_out")


class Both:
    """A stack, the simulator, and what every key should give back."""

    def __init__(self, path, capacities=(40 * KIB, 60 * KIB, 160 * KIB)):
        tiers = [Watched(t, c) for t, c in zip((Device(), PinnedHost(), Disk(path=path)), capacities, strict=True)]
        names = ("device", "pinned_host", "disk")
        self.stack = VGPUStack([Level(*each) for each in zip(names, tiers, capacities, strict=True)])
        self.simulator, self.tiers, self.expected = Simulator(list(capacities)), tiers, {}

    def put(self, key, num_bytes, seed, dtype, *, level=0, priority=None, on_device=False):
        raw = np.random.default_rng(seed).integers(0, 256, num_bytes).astype(np.uint8)
        if np.dtype(dtype).itemsize > 1:
            raw = raw.view(np.uint16 if np.dtype(dtype).itemsize == 2 else np.uint32)
        value = raw.view(dtype).reshape(2, -1)
        given = {"a": value, "b": [value[:0]]}
        before = dict(self.expected)
        try:
            found = self.stack.put(key, jax.device_put(given) if on_device else given, level or None, priority=priority)
        except TierError as error:
            assert f"'{key}'" in str(error) and "\n" not in str(error)
            with pytest.raises(Refused):
                self.simulator.put(key, num_bytes, level, priority, on_device)
            assert self.expected == before
        else:
            assert found == self.simulator.put(key, num_bytes, level, priority, on_device)
            self.expected[key] = value.tobytes()

    def get(self, key):
        value = self.stack.get(key)
        self.simulator.get(key)
        assert np.asarray(value["a"]).tobytes() == self.expected[key]
        assert isinstance(value["a"], jax.Array) == (self.stack.level_of(key) < 2)

    def prefetch(self, key):
        self.stack.prefetch(key).result()
        self.simulator.prefetch(key)

    def pin(self, key):
        self.stack.pin(key)
        self.simulator.items[key].pins += 1

    def unpin(self, key):
        self.stack.unpin(key)
        self.simulator.items[key].pins -= 1

    def remove(self, key):
        self.stack.remove(key)
        del self.simulator.items[key], self.expected[key]

    def check(self):
        statistics = self.stack.statistics()
        for level, (report, tier) in enumerate(zip(statistics.levels, self.tiers, strict=True)):
            assert report.used == self.simulator.occupied(level) == tier.held
            assert report.used <= report.peak <= report.capacity
            for name in COUNTERS:
                assert getattr(report, name) == self.simulator.counts[name, level], (name, level)
        assert {k: self.stack.level_of(k) for k in self.stack} == {
            k: item.level for k, item in self.simulator.items.items()
        }

    def finish(self):
        for key in list(self.expected):
            self.get(key)
        self.check()
        self.stack.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_five_thousand_random_operations_each(tmp_path, seed):
    rng = np.random.default_rng(seed)
    both = Both(tmp_path)
    keys = [f"key/{i}" for i in range(40)]
    for step in range(5000):
        known = list(both.expected)
        key = known[rng.integers(len(known))] if known else ""
        match rng.choice(["put", "get", "prefetch", "pin", "remove"], p=[0.25, 0.5, 0.12, 0.08, 0.05]):
            case "put":
                both.put(
                    keys[rng.integers(len(keys))],
                    int(rng.choice([1, 2, 4, 7, 8, 30, 50])) * KIB,
                    step,
                    DTYPES[rng.integers(len(DTYPES))],
                    level=int(rng.choice([0, 0, 0, 1, 2])),
                    priority=[None, None, 1, 9][rng.integers(4)],
                    on_device=bool(rng.integers(2)),
                )
            case "get" if known:
                both.get(key)
            case "prefetch" if known:
                both.prefetch(key)
            case "pin" if known:
                pinned = [k for k, item in both.simulator.items.items() if item.pins]
                if len(pinned) > 3 or (pinned and rng.integers(2)):
                    both.unpin(pinned[rng.integers(len(pinned))])
                else:
                    both.pin(key)
            case "remove" if known:
                both.remove(key)
        both.check()
    assert both.stack.statistics().demotions > 500 and both.stack.statistics().promotions > 500
    assert all(level.hits > 100 for level in both.stack.statistics().levels)
    both.finish()


class StackMachine(RuleBasedStateMachine):
    """The same, with sequences that hypothesis shrinks."""

    def __init__(self):
        super().__init__()
        self.both = Both(None, (3 * KIB, 5 * KIB, 9 * KIB))
        self.seed = 0

    keys = st.sampled_from("abcdef")

    @rule(
        key=keys,
        kib=st.integers(1, 6),
        level=st.integers(0, 2),
        priority=st.none() | st.integers(0, 9),
        on_device=st.booleans(),
    )
    def put(self, key, kib, level, priority, on_device):
        self.seed += 1
        self.both.put(key, kib * KIB, self.seed, np.uint8, level=level, priority=priority, on_device=on_device)

    @precondition(lambda self: self.both.expected)
    @rule(what=st.sampled_from(["get", "prefetch", "pin", "remove"]), data=st.data())
    def use(self, what, data):
        getattr(self.both, what)(data.draw(st.sampled_from(sorted(self.both.expected))))

    @precondition(lambda self: any(item.pins for item in self.both.simulator.items.values()))
    @rule(data=st.data())
    def unpin(self, data):
        pinned = sorted(key for key, item in self.both.simulator.items.items() if item.pins)
        self.both.unpin(data.draw(st.sampled_from(pinned)))

    @invariant()
    def equal(self):
        self.both.check()

    def teardown(self):
        self.both.finish()


TestStack = StackMachine.TestCase
TestStack.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
