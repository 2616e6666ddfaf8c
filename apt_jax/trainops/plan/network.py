"""Which link a collective crosses, and how long it must take there at least."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from apt_jax.trainops.distributed.collectives import Collective
from apt_jax.vgpu.scheduler.devices import Link

_TWICE, _ONCE = ("all-reduce",), ("all-gather", "reduce-scatter", "collective-broadcast")


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same axes.

    Attributes:
      kind, axes: as in `Collective`.
      executions: in one step.
      bytes: payload of one device in one step.
      level: the slowest link it crosses.
      seconds: at least, on each link by name.
      conditional: of the executions, those in a branch that is not taken every time or by every device.
    """

    kind: str
    axes: tuple[str, ...]
    executions: int
    bytes: int
    level: str
    seconds: Mapping[str, float]
    conditional: int


class Network:
    """Where the devices of a mesh lie in a target's networks."""

    def __init__(self, mesh: Mesh, links: tuple[Link, ...]):
        self._links, self._names = links, mesh.axis_names
        self._places = _places(mesh, links[0].devices or mesh.size)
        self._spreads: dict[object, list[tuple[int, int]]] = {}

    def spread(self, one: Collective) -> list[tuple[int, int]]:
        """For each link, from the inside: (blocks it joins, devices of a group in each), of the widest group."""
        groups = self._groups(one)
        spread, within = [], 1
        inner = groups  # blocks of the level below: at first every device is one
        for link in self._links:
            outer = groups // link.devices if link.devices else np.zeros_like(groups)
            blocks = max(_most_blocks(outer, inner), 1)
            spread.append((blocks, within))
            within *= blocks
            inner = outer
        return spread

    def axis_level(self, axis: str) -> str | None:
        """The slowest link between neighbours along a mesh axis; None for an axis of size 1."""
        size = self._places.shape[self._names.index(axis)]
        if size == 1:
            return None
        return self._slowest(self.spread(Collective("all-gather", (axis,), 0, 1, "", False, ())))

    def traffic(self, collectives: Iterable[Collective]) -> list[Traffic]:
        """Totals by kind and axes, the longest first."""
        totals: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
        for one in collectives:
            totals.setdefault((one.kind, one.axes), []).append(one)
        found = [self._total(kind, axes, every) for (kind, axes), every in totals.items()]
        return sorted(found, key=lambda t: -max(t.seconds.values(), default=0.0))

    def _total(self, kind: str, axes: tuple[str, ...], every: list[Collective]) -> Traffic:
        seconds: dict[str, float] = {}
        level = ""
        for one in every:
            key = axes, one.groups if "?" in axes or kind == "collective-permute" else None
            spread = self._spreads.get(key) or self._spreads.setdefault(key, self.spread(one))
            level = level or (self._slowest(spread) or "")
            for link, (blocks, within) in zip(self._links, spread, strict=True):
                if blocks > 1:
                    took = one.count * (moved(kind, one.bytes, blocks, within) / link.bandwidth + link.latency)
                    seconds[link.name] = seconds.get(link.name, 0.0) + took
        executions, size = sum(one.count for one in every), sum(one.count * one.bytes for one in every)
        return Traffic(kind, axes, executions, size, level, seconds, sum(o.count for o in every if o.conditional))

    def _slowest(self, spread: list[tuple[int, int]]) -> str | None:
        crossed = [link.name for link, (blocks, _) in zip(self._links, spread, strict=True) if blocks > 1]
        return crossed[-1] if crossed else None

    def _groups(self, one: Collective) -> np.ndarray:
        """Places of the devices of every group, [groups, members]."""
        axes = [self._names.index(axis) for axis in one.axes if axis in self._names]
        if one.axes and len(axes) == len(one.axes) and one.kind != "collective-permute":
            size = math.prod(self._places.shape[axis] for axis in axes)
            return np.moveaxis(self._places, axes, range(-len(axes), 0)).reshape(-1, size)
        flat = self._places.reshape(-1)
        if not one.groups:
            return flat[None, :] if one.axes else flat[:, None]
        widest = max(map(len, one.groups))
        return np.array([[flat[i] for i in (*group, *group[-1:] * (widest - len(group)))] for group in one.groups])


def moved(kind: str, size: int, blocks: int, within: int) -> float:
    """Bytes that one device must send over a link that joins `blocks` blocks of `within` devices of a group.

    What crosses into a block can be shared out among its devices, unless each needs its own (all-to-all, permute).
    """
    if kind in _TWICE:
        return 2.0 * (blocks - 1) / blocks * size / within
    if kind in _ONCE:
        return (blocks - 1) / blocks * size / within
    if kind == "collective-permute":
        return float(size)
    return (blocks - 1) / blocks * size


def _most_blocks(outer: np.ndarray, inner: np.ndarray) -> int:
    """The largest number of different inner blocks of one group inside one outer block."""
    most = 0
    pairs = outer.astype(np.int64) * (int(inner.max()) + 1) + inner
    ordered = np.sort(pairs, axis=1)
    fresh = np.ones_like(ordered, dtype=bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    blocks = ordered // (int(inner.max()) + 1)
    # Runs of equal outer blocks are contiguous: count the fresh ones in each.
    for start in range(0, len(ordered), 1024):
        part, new = blocks[start : start + 1024], fresh[start : start + 1024]
        first = part[:, :1]
        if (part == first).all():
            most = max(most, int(new.sum(axis=1).max()))
            continue
        for row, marks in zip(part, new, strict=True):
            most = max(most, int(np.unique(row[marks], return_counts=True)[1].max()))
    return most


def _places(mesh: Mesh, span: int) -> np.ndarray:
    """Numbers in the mesh's shape: devices of a host, and of a slice (`span` apart), follow each other."""
    flat = list(mesh.devices.flat)
    slices = np.array([getattr(device, "slice_index", None) or 0 for device in flat], dtype=np.int64)
    ids = np.array([device.id for device in flat], dtype=np.int64)
    places = np.empty(len(flat), dtype=np.int64)
    for index in np.unique(slices):
        mine = np.flatnonzero(slices == index)
        places[mine[np.argsort(ids[mine], kind="stable")]] = np.arange(len(mine)) + index * span
    return places.reshape(mesh.devices.shape)
