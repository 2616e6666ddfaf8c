"""Where every parameter lies and what it costs a device: figures that need no device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from apt_jax.trainops.distributed.memory_kinds import HOST
from apt_jax.trainops.distributed.strategy import Strategy

Tree = Any


@dataclass(frozen=True)
class DescribedDevice:
    """Stands for a device that need not exist: a mesh can be laid out over such, and nothing run on it.

    Attributes:
      id: its place among the devices.
      platform, process_index, slice_index, device_kind: what laying out a mesh and a batch asks of a device.
      coords, core_on_chip: what laying it out on a TPU's torus asks.
    """

    id: int
    platform: str = "cpu"
    process_index: int = 0
    slice_index: int = 0
    device_kind: str = ""
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


@dataclass(frozen=True)
class Bytes:
    """Bytes of what training keeps of parameters.

    Attributes:
      parameters: the weights.
      gradients: what a step's gradients are summed up in, over its microbatches.
      optimizer: the optimizer's state.
    """

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class Placement:
    """How one parameter is spread over the mesh.

    Attributes:
      path: its name, with dots.
      shape: as the state keeps it: with several groups of layers per pipeline stage, [groups, layers / groups, …].
      axes: logical axis of each dimension.
      mesh_axes: mesh axes that cut each dimension, only those larger than 1.
      copies: devices that hold each element.
      replicated: it lies whole on every device although there are several.
      per_device: bytes on one device.
      whole: bytes of one uncut copy.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    mesh_axes: tuple[tuple[str, ...], ...]
    copies: int
    replicated: bool
    per_device: Bytes
    whole: Bytes

    @property
    def spec(self) -> str:
        """`P(tensor, (fsdp, pipe))`, as jax's PartitionSpec with every dimension written out."""
        parts = [", ".join(axes) or "None" for axes in self.mesh_axes]
        return f"P({', '.join(f'({p})' if ',' in p else p for p in parts)})"


@dataclass(frozen=True)
class ShardingReport:
    """All placements of a run.

    Attributes:
      strategy, zero_stage, sequence_parallel: as in `Layout`.
      sizes: devices per mesh axis.
      placements: of every parameter, in the state's order.
      per_device: bytes on one device, with the optimizer's state that belongs to no parameter.
      whole: bytes of one uncut copy of the same.
      host: of `per_device`, what lies in the host's memory.
    """

    strategy: str
    zero_stage: int
    sequence_parallel: bool
    sizes: Mapping[str, int]
    placements: tuple[Placement, ...]
    per_device: Bytes
    whole: Bytes
    host: Bytes

    @property
    def devices(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.sizes.values())

    @property
    def num_params(self) -> int:
        """Numbers in all parameters."""
        return sum(math.prod(p.shape) for p in self.placements)


def described_devices(count: int) -> list[DescribedDevice]:
    """`count` devices to lay out a mesh over; any number, as nothing is allocated."""
    return [DescribedDevice(i) for i in range(count)]


def report_shardings(strategy: Strategy, opt_state: Tree, opt_kinds: Tree = None) -> ShardingReport:
    """Sums up where a strategy puts parameters, gradients and the optimizer's state.

    Args:
      strategy: bound to a mesh, which may be of described devices.
      opt_state: shape structs with shardings, as in `Program.abstract_state()`.
      opt_kinds: their memory kinds, as in `Program.memory_kinds`; None: all on the device.
    """
    params = {_names(path): x for path, x in jax.tree_util.tree_leaves_with_path(strategy.abstract_params)}
    slots: dict[tuple[str, ...], tuple[int, int]] = dict.fromkeys(params, (0, 0))
    rest = (0, 0)
    for path, slot in jax.tree_util.tree_leaves_with_path(opt_state):
        size = _sizes(slot, slot.sharding)
        owner = next((name for name in _endings(_names(path)) if name in params), None)
        if owner is None:
            rest = _add(rest, size)
        else:
            slots[owner] = _add(slots[owner], size)
    placements = tuple(
        _place(strategy, name, x, where, gradient, slots[name])
        for (name, x), where, gradient in zip(
            params.items(),
            jax.tree.leaves(strategy.param_shardings),
            jax.tree.leaves(strategy.gradient_shardings),
            strict=True,
        )
    )
    return ShardingReport(
        strategy=strategy.layout.strategy,
        zero_stage=strategy.layout.zero_stage,
        sequence_parallel=strategy.layout.sequence_parallel,
        sizes=dict(strategy.mesh.shape),
        placements=placements,
        per_device=_total((p.per_device for p in placements), rest[0]),
        whole=_total((p.whole for p in placements), rest[1]),
        host=_on_host(strategy, opt_state, opt_kinds),
    )


def _on_host(strategy: Strategy, opt_state: Tree, opt_kinds: Tree) -> Bytes:
    if opt_kinds is None:
        return Bytes(0, 0, 0)

    def held(arrays: Tree, shardings: Tree, kinds: Tree) -> int:
        leaves = zip(*map(jax.tree.leaves, (arrays, shardings, kinds)), strict=True)
        return sum(_sizes(x, where)[0] for x, where, kind in leaves if kind == HOST)

    params, kinds = strategy.abstract_params, strategy.param_kinds
    return Bytes(
        held(params, strategy.param_shardings, kinds),
        held(params, strategy.gradient_shardings, kinds),
        held(opt_state, jax.tree.map(lambda x: x.sharding, opt_state), opt_kinds),
    )


def _place(
    strategy: Strategy,
    name: tuple[str, ...],
    x: jax.ShapeDtypeStruct,
    where: NamedSharding,
    gradient: NamedSharding,
    optimizer: tuple[int, int],
) -> Placement:
    axes = strategy.axes
    for key in name:
        axes = axes[key]
    mesh_axes = _mesh_axes(where, len(x.shape))
    copies = strategy.mesh.size // math.prod(strategy.mesh.shape[a] for part in mesh_axes for a in part)
    held, held_gradient = _sizes(x, where), _sizes(x, _accumulator(name, gradient))
    return Placement(
        path=".".join(name),
        shape=tuple(x.shape),
        axes=(*(None,) * (len(x.shape) - len(axes)), *axes),  # groups of layers have no logical axis
        mesh_axes=mesh_axes,
        copies=copies,
        replicated=copies == strategy.mesh.size > 1,
        per_device=Bytes(held[0], held_gradient[0], optimizer[0]),
        whole=Bytes(held[1], held_gradient[1], optimizer[1]),
    )


def _mesh_axes(where: NamedSharding, ndim: int) -> tuple[tuple[str, ...], ...]:
    spec = (*where.spec, *(None,) * (ndim - len(where.spec)))
    return tuple(() if p is None else (p,) if isinstance(p, str) else tuple(p) for p in spec)


def _accumulator(name: tuple[str, ...], gradient: NamedSharding) -> NamedSharding:
    """Outside of the layers every pipeline stage sums up on its own, and the sums are added at the end."""
    if name[0] == "layers":
        return gradient
    kept = [tuple(axis for axis in cut if axis != "pipe") for cut in _mesh_axes(gradient, len(gradient.spec))]
    return NamedSharding(gradient.mesh, PartitionSpec(*(cut or None for cut in kept)))


def _sizes(x: Any, where: Any) -> tuple[int, int]:
    """Bytes of an array on one device, and of all of it."""
    return math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize, math.prod(x.shape) * x.dtype.itemsize


def _total(parts: Iterator[Bytes], rest: int) -> Bytes:
    listed = list(parts)
    return Bytes(
        sum(p.parameters for p in listed),
        sum(p.gradients for p in listed),
        sum(p.optimizer for p in listed) + rest,
    )


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _endings(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The longest first: a slot's path ends with its parameter's."""
    return (names[start:] for start in range(len(names)))
