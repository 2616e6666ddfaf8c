"""Tiers that watch, and tiers that fail."""

from __future__ import annotations

from typing import Any

from apt_jax.vgpu.memory.tiers.tier import TierError, size


class Watched:
    """A tier that adds up what lies in it itself, and refuses to hold more than `capacity` bytes at any moment."""

    def __init__(self, tier: Any, capacity: int):
        self.tier, self.capacity, self.held = tier, capacity, 0
        self.sizes: dict[int, list[int]] = {}
        self.in_memory = tier.in_memory

    def holds(self, leaves, homes):
        return self.tier.holds(leaves, homes)

    def write(self, key, leaves, homes):
        num_bytes = sum(leaf.nbytes for leaf in leaves)
        if not self.holds(leaves, homes):  # an array that is taken as it is makes no copy
            assert self.held + num_bytes <= self.capacity, f"{key}: {size(self.held + num_bytes)}"
        self.held += num_bytes
        stored = self.tier.write(key, leaves, homes)
        self.sizes.setdefault(id(stored), []).append(num_bytes)
        return stored

    def read(self, key, stored):
        return self.tier.read(key, stored)

    def delete(self, stored):
        self.held -= self.sizes[id(stored)].pop()
        self.tier.delete(stored)

    def close(self):
        self.tier.close()


class Failing:
    """A tier whose writes fail while `broken` says why."""

    def __init__(self, tier: Any, broken: str = ""):
        self.tier, self.broken = tier, broken
        self.in_memory = tier.in_memory

    def holds(self, leaves, homes):
        return self.tier.holds(leaves, homes)

    def write(self, key, leaves, homes):
        if self.broken:
            raise TierError(f"'{key}' cannot be written: {self.broken}")
        return self.tier.write(key, leaves, homes)

    def read(self, key, stored):
        return self.tier.read(key, stored)

    def delete(self, stored):
        self.tier.delete(stored)

    def close(self):
        self.tier.close()
