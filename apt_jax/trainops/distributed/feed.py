"""From rows that a process has read to global arrays on the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from apt_jax.core.errors import ConfigError


class Feed:
    """Which rows of every global batch this process reads, and how they get to its devices.

    Processes whose devices differ only along pipe, context or tensor need the same rows, so there may be
    fewer groups of rows than processes.

    Attributes:
      index, count: this process reads group `index` of `count` equal, contiguous groups of rows.
      order: int [T], the order of the tokens of a row on the mesh; None: as they are.
    """

    def __init__(self, sharding: NamedSharding, batch_size: int, order: np.ndarray | None = None):
        """Args:
        sharding: of every [B, T] batch array.
        batch_size: B, over all processes.
        order: permutation of the tokens of each row, applied on the host.

        Raises:
          ConfigError: the rows of a process are not contiguous: its devices are spread over the mesh.
        """
        self.order = order
        self._sharding, self._batch_size = sharding, batch_size
        self._first, stop = _rows(sharding, batch_size, jax.process_index())
        share = stop - self._first
        self.index, self.count = self._first // share, batch_size // share

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """This process's rows, host arrays [B / count, T], as global arrays [B, T]."""
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
            return rows[start - self._first : stop - self._first, *index[1:]]

        # jax counts this copy, which is asked for, among those the loop forbids.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_callback((self._batch_size, *rows.shape[1:]), self._sharding, shard)


def _rows(sharding: NamedSharding, batch_size: int, process: int) -> tuple[int, int]:
    """First and last + 1 of the rows that the devices of a process hold."""
    by_row = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    held = {
        index[0].indices(batch_size)[:2]
        for device, index in by_row.devices_indices_map((batch_size,)).items()
        if device.process_index == process
    } or {(0, batch_size)}
    pieces = sorted(held)
    first, last = pieces[0][0], pieces[-1][1]
    share = last - first
    if sum(stop - start for start, stop in pieces) != share or batch_size % share or first % share:
        raise ConfigError(
            f"training.distributed: process {process} would need rows {pieces} of each batch, which are not one "
            "equal share; make data_parallel × fsdp_parallel × expert_parallel a multiple of the number of "
            "processes, or a divisor of it"
        )
    return first, last
