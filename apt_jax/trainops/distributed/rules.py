"""Logical axis -> mesh axes, and the shardings of parameters, optimizer state and batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.core.errors import ConfigError
from apt_jax.core.logical import AxisRules

# First match wins per dimension, and a mesh axis serves an array once: on activations `batch` comes
# first and takes `fsdp`, so `embed` stays whole there; on parameters `embed` takes it.
DEFAULT_RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "seq": ("context",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "vocab": ("tensor",),
    "layers": (),
    "rank": (),
    "norm": (),
}

_BATCH_AXES = ("batch", "seq")


def make_rules(mesh: Mesh, extra: Mapping[str, tuple[str, ...]]) -> AxisRules:
    """Default rules plus a plugin's; an unknown mesh axis is an error."""
    rules = {**DEFAULT_RULES, **extra}
    for name, axes in rules.items():
        for axis in axes:
            if axis not in mesh.shape:
                raise ConfigError(
                    f"sharding rule '{name}': unknown mesh axis '{axis}'; available: {', '.join(mesh.shape)}"
                )
    return AxisRules(mesh, rules)


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
    """Shardings of the optimizer state: moments as their parameters, everything else replicated.

    A slot belongs to the parameter whose path its own path ends with, which holds for every optax
    transform, also for those that see only some of the parameters.
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
                # A slot that merely belongs to a parameter but has another shape (a scalar, say) stays whole.
                return where if slot.shape == shape else replicated
        return replicated

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, params))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def batch_sharding(rules: AxisRules, batch_size: int) -> NamedSharding:
    """The sharding of every [B, T] batch array; raises ConfigError where B is not divisible."""
    ways = rules.mesh.shape["data"] * rules.mesh.shape["fsdp"]
    if batch_size % ways:
        raise ConfigError(
            f"training.batch_size: {batch_size} sequences per microbatch cannot be split over {ways} "
            "data-parallel devices; make it a multiple"
        )
    return rules.sharding(_BATCH_AXES)
