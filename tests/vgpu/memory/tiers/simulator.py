"""What a stack is documented to do, said once more in plain Python: no arrays, no threads, nothing shared with it.

Bytes in use are added up from the values each time; the stack keeps accounts instead.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class Refused(Exception):
    """No level takes the value."""


@dataclass
class Item:
    """A value: where it lies, and on which levels there is a copy of it."""

    size: int
    level: int
    copies: set[int]
    priority: int = 5
    pins: int = 0
    used: int = 0


@dataclass
class Simulator:
    """Levels by capacity; the last `disks` of them leave their copy behind when a value goes up."""

    capacities: list[int]
    disks: int = 1
    items: dict[str, Item] = field(default_factory=dict)
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)  # (what, level) -> how often, or bytes
    clock: int = 0

    def occupied(self, level: int) -> int:
        return sum(item.size for item in self.items.values() if level in item.copies)

    def touch(self, key: str) -> None:
        self.clock += 1
        self.items[key].used = self.clock

    def put(self, key: str, size: int, level: int = 0, priority: int | None = None, on_device: bool = False) -> int:
        old = self.items.get(key)
        if old and level == 0 and old.level == 0 and old.size == size and on_device:
            old.copies = {0}
            target = 0
        else:
            for target in range(level, len(self.capacities)):
                if size <= self.capacities[target] and self.make_room(target, size, []):
                    break
            else:
                raise Refused(key)
            if not (on_device and target == 0):
                self.counts["bytes_in", target] += size
            self.items[key] = Item(size, target, {target}, 5)
            if old:
                self.items[key] = Item(size, target, {target}, old.priority, old.pins)
        if priority is not None:
            self.items[key].priority = priority
        self.touch(key)
        return target

    def get(self, key: str) -> None:
        item = self.items[key]
        self.counts["hits", item.level] += 1
        for above in range(item.level):
            self.counts["misses", above] += 1
        self.touch(key)
        self.promote(key)
        if item.level >= len(self.capacities) - self.disks:
            self.counts["bytes_out", item.level] += item.size

    def prefetch(self, key: str) -> None:
        self.touch(key)
        self.promote(key)

    def promote(self, key: str) -> None:
        item = self.items[key]
        for target in range(item.level):
            if self.make_room(target, item.size, [key]):
                self.counts["promotions", item.level] += 1
                self.transfer(item, target)
                return

    def make_room(self, level: int, size: int, keep: list[str]) -> bool:
        """Victims leave one by one; nobody is moved for a value that cannot fit anyway."""
        while self.capacities[level] - self.occupied(level) < size:
            here = {k: i for k, i in self.items.items() if i.level == level}
            staying = sum(i.size for k, i in here.items() if i.pins or k in keep)
            if self.capacities[level] - staying < size:
                return False
            shadows = [k for k, i in self.items.items() if i.level < level and level in i.copies and k not in keep]
            if shadows:
                self.items[min(shadows, key=lambda k: self.items[k].used)].copies.discard(level)
                continue
            free = [k for k, i in here.items() if not i.pins and k not in keep]
            if not free:
                return False
            victim = min(free, key=lambda k: (self.items[k].priority, self.items[k].used))
            if not self.demote(victim, keep):
                return False
        return True

    def demote(self, key: str, keep: list[str]) -> bool:
        item = self.items[key]
        for target in range(item.level + 1, len(self.capacities)):
            if target in item.copies or self.make_room(target, item.size, [*keep, key]):
                self.counts["demotions", item.level] += 1
                self.transfer(item, target)
                return True
        return False

    def transfer(self, item: Item, target: int) -> None:
        if target not in item.copies:
            self.counts["bytes_out", item.level] += item.size
            self.counts["bytes_in", target] += item.size
        leaves_copy = target < item.level and item.level >= len(self.capacities) - self.disks
        if not leaves_copy:
            item.copies.discard(item.level)
        item.copies.add(target)
        item.level = target
