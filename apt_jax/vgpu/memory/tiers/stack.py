"""Levels of memory from fast to large, between which values move as they are used."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from apt_jax.core.errors import did_you_mean
from apt_jax.vgpu.memory.tiers.ledger import Entry, Value
from apt_jax.vgpu.memory.tiers.moves import Mover
from apt_jax.vgpu.memory.tiers.statistics import StackStatistics, render
from apt_jax.vgpu.memory.tiers.tier import Leaf, Level, TierError
from apt_jax.vgpu.memory.tiers.victims import FarthestInPlan, LeastRecentlyUsed, Victims


class VGPUStack:
    """Values (arrays, or pytrees of arrays) by name, each in one of several levels.

    A value enters at the top. What has to leave a level for it goes one level down, never away, and comes back up
    when it is asked for. No level ever holds more bytes than its capacity, copies in flight included. What callers
    hold themselves, such as an array that `get` returned, is theirs and not counted.

    Values are immutable: `put` replaces one. Arrays that lie on the device are taken as they are, without a copy; do
    not donate them to a compiled function.

    All methods may be called from any thread. Requests for what lies in level 0 never wait for copies under way.

        stack = create_vgpu_stack([{"device": "cuda:0", "capacity_mb": 2000}, {"device": "ssd", "capacity_mb": 32000}])
        stack.put("layers/0", params)
        stack.prefetch("layers/1")
        params = stack.get("layers/0")
        stack.print_stats()
    """

    def __init__(self, levels: Sequence[Level], *, victims: Victims | None = None):
        """Args:
        levels: from the fastest to the largest; usually device, pinned host, disk.
        victims: who leaves a full level; by default the least recently used.

        Raises:
          TierError: no levels, or two of one name.
        """
        names = [level.name for level in levels]
        if not levels or len(set(names)) < len(names):
            raise TierError(f"levels are {', '.join(names) or 'missing'}; give at least one, and names of their own")
        self._mover = Mover(levels, victims or LeastRecentlyUsed())
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vgpu-tiers")
        self._closed = False
        self._clock = self._prefetches = 0
        self._stall_seconds, self._since = 0.0, time.perf_counter()

    def put(self, key: str, value: Any, level: int | None = None, *, priority: int | None = None) -> int:
        """Stores a value, in place of a former one of that name, and returns the level it went to.

        Args:
          level: the highest one to try; by default 0. Levels below follow if it has no room.
          priority: higher ones stay longer when room is needed (default: 5, or that of the former value).

        Raises:
          TierError: it is larger than every level, or there is no room, or storing failed (the disk may be full).
            Nothing has changed then, but for values that went down to make room.
        """
        return self._put(key, Value.of(key, value), self._level(level), priority, waiting=True)

    def put_later(self, key: str, value: Any, level: int | None = None, *, priority: int | None = None) -> Future[int]:
        """As `put`, on the background thread, after what was asked of it before.

        Until then the arrays are held, and not counted. The future has the level, or the error: do ask it.
        """
        parts, start = Value.of(key, value), self._level(level)
        with self._mover.lock:
            self._check_open()
            return self._worker.submit(self._put, key, parts, start, priority, waiting=False)

    def get(self, key: str, *, pin: bool = False) -> Any:
        """The value, moved up to level 0 if it fits there once others have gone down.

        Where it does not fit it is returned as it lies: pinned-host arrays, or numpy arrays read from disk.

        Args:
          pin: also pin it, with no moment between in which it could go.

        Raises:
          TierError: no such value, or it cannot be read.
        """
        started = time.perf_counter()
        with self._mover.lock:
            entry = self._entry(key)
            tier = self._mover.ledgers[0].level.tier
            if entry.level == 0 and tier.in_memory:
                leaves = tier.read(key, entry.copies[0])
                self._count(entry, pin)
                return self._tree(entry, leaves)
        with self._mover.turn, self._stalled(started):
            with self._mover.lock:
                entry = self._entry(key)
                self._count(entry, pin)
                entry.moving = True
            try:
                self._mover.promote(entry)
                leaves = self._mover.read(entry)
            except BaseException:
                with self._mover.lock:
                    entry.pins -= pin
                raise
            finally:
                entry.moving = False
            return self._tree(entry, leaves)

    def prefetch(self, key: str) -> Future[None]:
        """Moves a value up as `get` does, on a background thread, in the order of the calls.

        The future is done when the value is there. A failure is kept in it; the `get` that follows meets it too.

        Raises:
          TierError: no such value.
        """
        with self._mover.lock:
            self._entry(key)
            self._prefetches += 1
            return self._worker.submit(self._fetch, key)

    def pin(self, key: str) -> None:
        """Keeps a value from leaving its level downwards, until `unpin` has been called as often."""
        with self._mover.lock:
            self._entry(key).pins += 1

    def unpin(self, key: str) -> None:
        """Takes one `pin` back. Raises TierError if there is none."""
        with self._mover.lock:
            entry = self._entry(key)
            if not entry.pins:
                raise TierError(f"'{key}' is not pinned")
            entry.pins -= 1

    def remove(self, key: str) -> None:
        """Forgets a value, pinned or not."""
        started = time.perf_counter()
        with self._mover.lock:
            if not self._entry(key).moving:
                self._mover.forget(key)
                return
        with self._mover.turn, self._stalled(started), self._mover.lock:
            self._entry(key)
            self._mover.forget(key)

    def keys(self) -> list[str]:
        """Names of all values, in the order of their first `put`."""
        with self._mover.lock:
            return list(self._mover.entries)

    def level_of(self, key: str) -> int:
        """The level that a value lies in, from 0."""
        with self._mover.lock:
            return self._entry(key).level

    def nbytes(self, key: str) -> int:
        """Bytes of a value's arrays."""
        with self._mover.lock:
            return self._entry(key).num_bytes

    def __contains__(self, key: str) -> bool:
        return key in self._mover.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._mover.entries)

    @contextmanager
    def planned(self, keys: Sequence[str], *, cyclic: bool = False) -> Iterator[None]:
        """Inside this context the requests to come are known: who is needed farthest in the future goes first."""
        before, plan = self._mover.victims, FarthestInPlan(keys, cyclic=cyclic)
        with self._mover.lock:
            self._mover.victims = plan
        try:
            yield
        finally:
            with self._mover.lock:
                self._mover.victims = before

    def statistics(self) -> StackStatistics:
        """A snapshot of what was counted and timed."""
        with self._mover.lock:
            mover, entries = self._mover, self._mover.entries.values()
            tensors = [
                sum(e.value.treedef.num_leaves for e in entries if e.level == i) for i in range(len(mover.ledgers))
            ]
            levels = [ledger.report(count) for ledger, count in zip(mover.ledgers, tensors, strict=True)]
            elapsed = time.perf_counter() - self._since
            return StackStatistics(levels, self._stall_seconds, elapsed, self._prefetches, mover.failed_writes)

    def reset_statistics(self) -> None:
        """Counts and times from now on."""
        with self._mover.lock:
            for ledger in self._mover.ledgers:
                ledger.reset()
            self._prefetches = self._mover.failed_writes = 0
            self._stall_seconds, self._since = 0.0, time.perf_counter()

    def print_stats(self) -> None:
        """Prints the statistics."""
        print(render(self.statistics()))

    def close(self) -> None:
        """Waits for copies under way, then forgets all values and removes what lies on disk."""
        with self._mover.lock:
            self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)
        with self._mover.turn, self._mover.lock:
            self._mover.entries.clear()
            for ledger in self._mover.ledgers:
                ledger.used = 0
                ledger.level.tier.close()

    def __enter__(self) -> VGPUStack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(self, key: str) -> None:
        with self._mover.turn:
            with self._mover.lock:
                entry = self._mover.entries.get(key)
                if self._closed or entry is None:  # removed since it was asked for
                    return
                self._touch(entry)
                entry.moving = True
            try:
                self._mover.promote(entry)
            finally:
                entry.moving = False

    def _put(self, key: str, value: Value, level: int, priority: int | None, *, waiting: bool) -> int:
        started = time.perf_counter()
        with self._mover.lock:
            self._check_open()
            if level == 0 and self._replace_in_place(key, value, priority):
                return 0
        with self._mover.turn, self._stalled(started if waiting else None):
            self._check_open()
            found = self._mover.store(key, value, level, priority)
            with self._mover.lock:
                self._touch(self._mover.entries[key])
            return found

    @contextmanager
    def _stalled(self, started: float | None) -> Iterator[None]:
        """Adds the time since `started` to what callers waited."""
        try:
            yield
        finally:
            if started is not None:
                with self._mover.lock:
                    self._stall_seconds += time.perf_counter() - started

    def _replace_in_place(self, key: str, value: Value, priority: int | None) -> bool:
        """Swaps arrays of level 0 for others that lie there already; `lock` is held."""
        entry, ledger = self._mover.entries.get(key), self._mover.ledgers[0]
        if entry is None or entry.level or entry.moving or value.num_bytes != entry.num_bytes:
            return False
        if not (ledger.level.tier.in_memory and ledger.level.tier.holds(value.leaves, value.homes)):
            return False
        for level in [at for at in entry.copies if at]:
            self._mover.drop(entry, level)
        former, entry.copies[0] = entry.copies[0], ledger.level.tier.write(key, value.leaves, value.homes)
        ledger.level.tier.delete(former)
        value.leaves = []
        entry.value = value
        entry.priority = entry.priority if priority is None else priority
        self._touch(entry)
        return True

    def _count(self, entry: Entry, pin: bool) -> None:
        entry.pins += pin
        self._mover.ledgers[entry.level].hits += 1
        for above in self._mover.ledgers[: entry.level]:
            above.misses += 1
        self._mover.victims.used(entry.key)
        self._touch(entry)

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.last_used = self._clock

    @staticmethod
    def _tree(entry: Entry, leaves: Sequence[Leaf]) -> Any:
        return jax.tree.unflatten(entry.value.treedef, leaves)

    def _entry(self, key: str) -> Entry:
        self._check_open()
        entry = self._mover.entries.get(key)
        if entry is None:
            known = list(self._mover.entries)
            raise TierError(f"no value '{key}' in the stack{did_you_mean(key, known[:1000])}; it has {len(known):,}")
        return entry

    def _check_open(self) -> None:
        if self._closed:
            raise TierError("the stack is closed")

    def _level(self, level: int | None) -> int:
        last = len(self._mover.ledgers) - 1
        if level is not None and not 0 <= level <= last:
            raise TierError(f"level {level}: the stack has levels 0 to {last}")
        return level or 0
