"""Stateless randomness: every choice is a hash of the seed and of what is chosen.

Written out here rather than taken from a generator, so that the order of the data stays the same over
versions of numpy.
"""

from __future__ import annotations

import numpy as np

from apt_jax.trainops.data.files import fingerprint

_MASK = (1 << 64) - 1


def derive(*parts: object) -> int:
    """A 64-bit key from a seed and the names of its use, e.g. `derive(seed, "split", name)`."""
    return int(fingerprint(parts)[:16], 16)


def hash_indices(count: int, key: int) -> np.ndarray:
    """uint64 [count]: a hash of each index 0..count-1 under `key` (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & _MASK)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permutation(count: int, key: int) -> np.ndarray:
    """int64 [count]: the indices in an order that depends on `key` alone."""
    return np.argsort(hash_indices(count, key), kind="stable")
