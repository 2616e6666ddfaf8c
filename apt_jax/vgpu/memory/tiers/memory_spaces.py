"""Memory that a device can read: its own, and the host's pinned pages."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from apt_jax.vgpu.memory.tiers.tier import Home, Leaf, TierError

_ALIGNMENT = 64  # bytes, from which on XLA uses a buffer in place


class _MemorySpace:
    """Arrays of one of jax's memory kinds; a sharded array keeps its sharding."""

    kind: str
    in_memory = True

    def __init__(self, *, device: int = 0):
        """Args:
        device: index among `jax.local_devices()`, for arrays that come from numpy.

        Raises:
          TierError: no such device, or it has no such memory.
        """
        devices = jax.local_devices()
        if not 0 <= device < len(devices):
            raise TierError(f"tier '{self.kind}': no device {device}; there are 0 to {len(devices) - 1}")
        kinds = [memory.kind for memory in devices[device].addressable_memories()]
        if self.kind not in kinds:
            raise TierError(f"tier '{self.kind}': {devices[device]} has no such memory; it has {', '.join(kinds)}")
        self._default = jax.sharding.SingleDeviceSharding(devices[device])

    def _place(self, home: Home) -> jax.sharding.Sharding:
        return (home or self._default).with_memory_kind(self.kind)

    def holds(self, leaves: Sequence[Leaf], homes: Sequence[Home]) -> bool:
        pairs = zip(leaves, homes, strict=True)
        return all(isinstance(leaf, jax.Array) and leaf.sharding == self._place(home) for leaf, home in pairs)

    def write(self, key: str, leaves: Sequence[Leaf], homes: Sequence[Home]) -> list[jax.Array]:
        try:
            placed = [_put(leaf, self._place(home)) for leaf, home in zip(leaves, homes, strict=True)]
            return jax.block_until_ready(placed)
        except jax.errors.JaxRuntimeError as error:
            cause = str(error).splitlines()[0]
            raise TierError(f"'{key}' cannot be written to {self.kind}: {cause}") from error

    def read(self, key: str, stored: list[jax.Array]) -> Sequence[Leaf]:
        if any(array.is_deleted() for array in stored):
            raise TierError(f"'{key}' was deleted in {self.kind}; never donate arrays that a stack holds")
        return stored

    def delete(self, stored: list[jax.Array]) -> None:
        """Nothing to do: the memory is free when the last reference goes."""

    def close(self) -> None:
        """Nothing is kept here."""


class Device(_MemorySpace):
    """The device's own memory; takes arrays as they are, without a copy, if they lie there."""

    kind = "device"


class PinnedHost(_MemorySpace):
    """Host memory that the device copies from and to directly."""

    kind = "pinned_host"


def _put(leaf: Leaf, place: jax.sharding.Sharding) -> jax.Array:
    """`jax.device_put`, but never an array that shares a numpy buffer, which its owner may change.

    On a CPU jax 0.10 uses an aligned buffer in place, whatever `may_alias` says. An aligned copy made here is therefore
    both safe and the only one.
    """
    if isinstance(leaf, jax.Array) or next(iter(place.device_set)).platform != "cpu":
        return jax.device_put(leaf, place)
    buffer = np.empty(leaf.nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    copy = buffer[start : start + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)
    copy[...] = leaf
    return jax.device_put(copy, place)
