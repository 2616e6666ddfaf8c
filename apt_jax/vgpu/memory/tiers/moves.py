"""Making room, and copying values from one level to another. Nothing here ever deletes the only copy of a value."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from apt_jax.vgpu.memory.tiers.ledger import Entry, Ledger, Value
from apt_jax.vgpu.memory.tiers.tier import Leaf, Level, TierError
from apt_jax.vgpu.memory.tiers.victims import Candidate, Victims

_log = logging.getLogger(__name__)


class Mover:
    """Entries, ledgers, and the moves between levels.

    Attributes:
      lock: guards all that follows; held for moments only.
      turn: held by the one thread that may call the methods below, which copy without `lock`.
      entries: by key.
      ledgers: by level.
      victims: the policy in force.
      failed_writes: demotions that the level below failed to take.
      failure: the last of them, in one line.
    """

    def __init__(self, levels: Sequence[Level], victims: Victims):
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.entries: dict[str, Entry] = {}
        self.ledgers = [Ledger(level) for level in levels]
        self.victims = victims
        self.failed_writes, self.failure = 0, ""

    def store(self, key: str, value: Value, level: int, priority: int | None) -> int:
        """Stores a value in the first level from `level` down that has or gets room, and then forgets a former one.

        Raises:
          TierError: no level has room, or the one that had it failed. A former value is unchanged then.
        """
        self.failure = ""
        fits = [at for at in range(level, len(self.ledgers)) if value.num_bytes <= self.ledgers[at].level.capacity]
        target = next((at for at in fits if self.reserve(at, value.num_bytes)), None)
        if target is None:
            raise TierError(self._refusal(key, value.num_bytes, level, bool(fits)))
        ledger = self.ledgers[target]
        copied = not ledger.level.tier.holds(value.leaves, value.homes)
        started = time.perf_counter()
        try:
            stored = ledger.level.tier.write(key, value.leaves, value.homes)
        except BaseException as error:
            with self.lock:
                ledger.release(value.num_bytes)
            if not isinstance(error, Exception):
                raise
            outcome = "its former value is unchanged" if key in self.entries else "it is not stored"
            raise TierError(f"{_line(key, ledger, error)}; {outcome}") from error
        value.leaves = []
        with self.lock:
            if copied:
                ledger.bytes_in += value.num_bytes
                ledger.seconds_in += time.perf_counter() - started
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = Entry(key, value, target)
            for at in list(entry.copies):
                self.drop(entry, at)
            entry.value, entry.level, entry.copies = value, target, {target: stored}
            if priority is not None:
                entry.priority = priority
        return target

    def promote(self, entry: Entry) -> None:
        """Moves a value to the highest level that has or gets room for it; it may stay where it is."""
        for target in range(entry.level):
            if self.reserve(target, entry.num_bytes, (entry,)):
                self.move(entry, target)
                return

    def reserve(self, level: int, num_bytes: int, keep: Sequence[Entry] = ()) -> bool:
        """Takes so many bytes of `level`, sending values down until they are free; False if it cannot be.

        Args:
          keep: entries that must stay where they are.
        """
        ledger = self.ledgers[level]
        while True:
            with self.lock:
                if ledger.free >= num_bytes:
                    ledger.reserve(num_bytes)
                    return True
                here = [e for e in self.entries.values() if e.level == level]
                fixed = sum(e.num_bytes for e in here if e.pins or e in keep)
                if num_bytes > ledger.level.capacity - fixed:
                    return False
                spare = [e for e in self.entries.values() if e.level < level and level in e.copies and e not in keep]
                if spare:  # what lies higher can be written once more
                    self.drop(min(spare, key=lambda e: e.last_used), level)
                    continue
                movable = {e.key: e for e in here if not e.pins and e not in keep}
                if not movable:
                    return False
                candidates = [Candidate(e.key, e.num_bytes, e.priority, e.last_used) for e in movable.values()]
                chosen = self.victims.choose(level, candidates)
                if chosen not in movable:
                    raise TierError(f"{type(self.victims).__name__} chose '{chosen}', which is no candidate")
                movable[chosen].moving = True  # from here on `put` waits for its turn
            try:
                if not self.demote(movable[chosen], keep):
                    return False
            finally:
                movable[chosen].moving = False

    def demote(self, entry: Entry, keep: Sequence[Entry] = ()) -> bool:
        """Moves a value to the next level down that has or gets room; False if none does."""
        for target in range(entry.level + 1, len(self.ledgers)):
            if target in entry.copies or self.reserve(target, entry.num_bytes, (*keep, entry)):
                try:
                    self.move(entry, target)
                except TierError as error:
                    self.failed_writes += 1
                    self.failure = f"{error}; it stays in {self.ledgers[entry.level].level.name}"
                    _log.warning("%s", self.failure)
                    return False
                return True
        return False

    def move(self, entry: Entry, target: int) -> None:
        """Copies a value to `target`, where its bytes are reserved, and then leaves its former level.

        A value that was pinned meanwhile is not demoted.

        Raises:
          TierError: reading or writing failed; the value is where it was.
        """
        up = target < entry.level
        source, to = self.ledgers[entry.level], self.ledgers[target]
        if target in entry.copies:
            with self.lock:
                if not entry.pins:
                    source.demotions += 1
                    self.drop(entry, entry.level)
                    entry.level = target
            return
        started = time.perf_counter()
        try:
            leaves = source.level.tier.read(entry.key, entry.copies[entry.level])
            stored: Any = to.level.tier.write(entry.key, leaves, entry.value.homes)
            del leaves
        except BaseException as error:
            with self.lock:
                to.release(entry.num_bytes)
            if isinstance(error, TierError) or not isinstance(error, Exception):
                raise
            raise TierError(_line(entry.key, to, error)) from error
        seconds = time.perf_counter() - started
        with self.lock:
            entry.copies[target] = stored
            source.bytes_out += entry.num_bytes
            source.seconds_out += seconds
            to.bytes_in += entry.num_bytes
            to.seconds_in += seconds
            if entry.pins and not up:
                self.drop(entry, target)
                return
            if up:
                source.promotions += 1
            else:
                source.demotions += 1
            if not up or source.level.tier.in_memory:
                self.drop(entry, entry.level)
            entry.level = target

    def read(self, entry: Entry) -> Sequence[Leaf]:
        """The arrays as they lie; from disk, as numpy arrays."""
        ledger, started = self.ledgers[entry.level], time.perf_counter()
        leaves = ledger.level.tier.read(entry.key, entry.copies[entry.level])
        if not ledger.level.tier.in_memory:
            with self.lock:
                ledger.bytes_out += entry.num_bytes
                ledger.seconds_out += time.perf_counter() - started
        return leaves

    def forget(self, key: str) -> None:
        """Forgets a value that is not moving; `lock` is held."""
        entry = self.entries.pop(key)
        for level in list(entry.copies):
            self.drop(entry, level)

    def drop(self, entry: Entry, level: int) -> None:
        """Forgets the copy of a value in one level; `lock` is held."""
        self.ledgers[level].level.tier.delete(entry.copies.pop(level))
        self.ledgers[level].release(entry.num_bytes)

    def _refusal(self, key: str, num_bytes: int, level: int, fits: bool) -> str:
        ledgers = self.ledgers[level:]
        if not fits:
            sizes = ", ".join(f"{each.level.name} {each.level.capacity:,}" for each in ledgers)
            return f"'{key}' has {num_bytes:,} bytes, more than any level can hold ({sizes}); store it in parts"
        sizes = ", ".join(f"{each.level.name} {each.free:,} of {each.level.capacity:,}" for each in ledgers)
        return (
            f"'{key}' has {num_bytes:,} bytes, and no level has room for it; free bytes: {sizes}; remove or unpin "
            f"values, or enlarge the last level{'; ' if self.failure else ''}{self.failure}"
        )


def _line(key: str, ledger: Ledger, error: Exception) -> str:
    if isinstance(error, TierError):
        return str(error)
    return f"'{key}' cannot be written to {ledger.level.name}: {' '.join(str(error).split()) or type(error).__name__}"
