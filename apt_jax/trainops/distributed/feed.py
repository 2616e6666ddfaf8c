"""From rows that a process has read to global arrays on the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


class Feed:
    """Which rows of every global batch this process reads, and how they get to its devices.

    Processes whose devices differ only along pipe, context or tensor read the same rows. Where a mesh follows a
    TPU's torus the rows of a process need not be neighbours.

    Attributes:
      rows: int [R], ascending: of each batch of B rows, those that this process's devices hold.
      order: int [T], the order of the tokens of a row on the mesh; None: as they are.
    """

    def __init__(self, sharding: NamedSharding, batch_size: int, order: np.ndarray | None = None):
        """Args:
        sharding: of every [B, T] batch array.
        batch_size: B, over all processes.
        order: permutation of the tokens of each row, applied on the host.
        """
        self.order = order
        self._sharding, self._batch_size = sharding, batch_size
        self.rows = _rows(sharding, batch_size, jax.process_index())

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """This process's rows, host arrays [R, T], as global arrays [B, T]."""
        rows = {name: np.asarray(array) for name, array in batch.items()}
        if self.order is not None:
            rows = {name: array[:, self.order] for name, array in rows.items()}
        if jax.process_count() == 1:
            return jax.device_put(rows, self._sharding)
        return {name: self._global(array) for name, array in rows.items()}

    def _global(self, rows: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(self._batch_size)
            first = int(np.searchsorted(self.rows, start))
            return rows[first : first + stop - start, *index[1:]]

        # jax counts this copy, which is asked for, among those the loop forbids.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_callback((self._batch_size, *rows.shape[1:]), self._sharding, shard)


def _rows(sharding: NamedSharding, batch_size: int, process: int) -> np.ndarray:
    """The rows that the devices of a process hold; all, where the mesh has none of its devices."""
    by_row = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    pieces = {
        index[0].indices(batch_size)[:2]
        for device, index in by_row.devices_indices_map((batch_size,)).items()
        if device.process_index == process
    } or {(0, batch_size)}
    return np.concatenate([np.arange(*piece) for piece in sorted(pieces)])
