"""Logical axis -> mesh axes, and the shardings of parameters, optimizer state and batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import DEFAULT_RULES
from apt_jax.core.logical import AxisRules
from apt_jax.trainops.distributed.memory_kinds import MemoryKinds

_BATCH_AXES = ("batch", "seq")


def make_rules(
    mesh: Mesh,
    extra: Mapping[str, tuple[str, ...]],
    *,
    sequence_parallel: bool = False,
    attend: Any = None,
    layers_on_host: bool = False,
) -> AxisRules:
    """Default rules plus a plugin's.

    Args:
      mesh: the six-axis mesh.
      extra: a plugin's rules, by logical axis.
      sequence_parallel: also cut `norm_seq` over `tensor`.
      attend: how attention kernels run where the sequence is cut; see `AxisRules`.
      layers_on_host: where parameters of layers lie; see `AxisRules`.

    Raises:
      ConfigError: an unknown mesh axis.
    """
    rules = {**DEFAULT_RULES, **extra}
    if sequence_parallel:
        rules["norm_seq"] = (*rules["norm_seq"], "tensor")
    for name, axes in rules.items():
        for axis in axes:
            if axis not in mesh.shape:
                raise ConfigError(
                    f"sharding rule '{name}': unknown mesh axis '{axis}'; available: {', '.join(mesh.shape)}"
                )
    return AxisRules(mesh, rules, attend, layers_on_host)


def without(rules: AxisRules, axis: str) -> AxisRules:
    """The same rules with nothing cut along mesh axis `axis` but the batch: arrays are whole there."""
    kept = {k: v if k == "batch" else tuple(a for a in v if a != axis) for k, v in rules.rules.items()}
    return replace(rules, rules=kept)


def param_shardings(rules: AxisRules, params: Any, axes: Any) -> Any:
    """A tree of `NamedSharding` for parameters (arrays or shape structs) by their logical axes."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = axes
        for key in path:
            names = names[key.key]
        what = ".".join(str(k.key) for k in path)
        if len(names) != len(leaf.shape):
            raise ConfigError(f"parameter {what}: logical axes {names} do not match its shape {leaf.shape}")
        return rules.sharding(names, leaf.shape, f"parameter {what}")

    return jax.tree_util.tree_map_with_path(place, params)


def state_shardings(rules: AxisRules, tx: optax.GradientTransformation, params: Any, placed: Any) -> Any:
    """Shardings of the optimizer state: moments as `placed` says for their parameters, the rest replicated.

    A slot belongs to the parameter whose path its own path ends with, which holds for every optax
    transform, also for those that see only some of the parameters. If it has as many axes but other sizes (scales
    of blocks), each axis is cut by the leading mesh axes that divide it.
    """
    replicated = NamedSharding(rules.mesh, PartitionSpec())
    by_path = {
        _names(path): (leaf.shape, where)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(placed), strict=True
        )
    }

    def place(path: tuple[Any, ...], slot: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            if names[start:] in by_path:
                shape, where = by_path[names[start:]]
                # A slot that merely belongs to a parameter but has other axes (a scalar, say) stays whole.
                return _refit(where, slot.shape) if len(slot.shape) == len(shape) else replicated
        return replicated

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, params))


def slot_kinds(memory: MemoryKinds, tx: optax.GradientTransformation, params: Any) -> Any:
    """Memory kinds of the optimizer state: of a parameter's slots by its path, of all else `device`."""
    ranks = {_names(path): len(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def kind(path: tuple[Any, ...], slot: Any) -> str:
        names = _names(path)
        own = next((names[start:] for start in range(len(names)) if names[start:] in ranks), None)
        return "device" if own is None or ranks[own] != len(slot.shape) else memory.of("/".join(("optimizer", *own)))

    return jax.tree_util.tree_map_with_path(kind, jax.eval_shape(tx.init, params))


def _refit(where: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """`where` for an array of another shape: without the mesh axes, from the first on, that do not divide it."""
    parts: list[tuple[str, ...] | None] = []
    for size, part in zip(shape, where.spec, strict=False):
        kept: tuple[str, ...] = ()
        for axis in () if part is None else (part,) if isinstance(part, str) else part:
            if size % math.prod(where.mesh.shape[a] for a in (*kept, axis)):
                break
            kept = (*kept, axis)
        parts.append(kept or None)
    while parts and parts[-1] is None:
        parts.pop()
    return NamedSharding(where.mesh, PartitionSpec(*parts))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def batch_sharding(rules: AxisRules, microbatch: int, length: int | None = None) -> NamedSharding:
    """The sharding of every [B, T] batch array.

    Raises:
      ConfigError: the rows of a microbatch, or the tokens of a row, cannot be shared equally.
    """
    ways = rules.ways("batch")
    if microbatch % ways:
        raise ConfigError(
            f"training.batch_size: {microbatch} sequences per microbatch cannot be split over {ways} "
            "data-parallel devices; make it a multiple"
        )
    if length is not None and length % rules.ways("seq"):
        raise ConfigError(
            f"data.sequence_length: {length} tokens cannot be split over {rules.ways('seq')} context-parallel "
            "devices; make it a multiple"
        )
    return rules.sharding(_BATCH_AXES)
