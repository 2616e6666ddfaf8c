"""Tokens to the devices that hold their experts and back, on a device's own shards inside a `shard_map`."""

from apt_jax.trainops.distributed.expert.capacity import (
    CapacityRoute,
    capacity_combine,
    capacity_dispatch,
    capacity_for,
)
from apt_jax.trainops.distributed.expert.ragged import RaggedRoute, ragged_combine, ragged_dispatch

__all__ = [
    "CapacityRoute",
    "RaggedRoute",
    "capacity_combine",
    "capacity_dispatch",
    "capacity_for",
    "ragged_combine",
    "ragged_dispatch",
]
