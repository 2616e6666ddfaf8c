"""Logical axis names and how they map onto the mesh.

Parameters and activations name their axes ("batch", "embed", "mlp" …); an ordered rule list says
which mesh axes each name may use. A mesh axis serves an array once: the first dimension that asks
for it gets it, as in flax's logical partitioning.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.core.errors import ConfigError, unknown_name

MESH_AXES = ("pipe", "data", "fsdp", "expert", "context", "tensor")
LogicalAxes = Sequence[str | None]


@dataclass(frozen=True)
class AxisRules:
    """A mesh and, per logical axis name, the mesh axes it is sharded over."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]

    def spec(
        self, axes: LogicalAxes, shape: Sequence[int] | None = None, what: str = "array"
    ) -> PartitionSpec:
        """Maps logical axes to a `PartitionSpec`.

        Args:
          axes: one logical name (or None: replicated) per dimension.
          shape: sizes to check divisibility against; None skips the check.
          what: the array's name for the error message.

        Raises:
          ConfigError: an unknown logical axis, or a size its mesh axes do not divide.
        """
        used: set[str] = set()
        parts: list[tuple[str, ...] | None] = []
        for dim, axis in enumerate(axes):
            if axis is None:
                parts.append(None)
                continue
            if axis not in self.rules:
                raise ConfigError(f"{what}: {unknown_name('logical axis', axis, self.rules)}")
            mesh_axes = tuple(a for a in self.rules[axis] if a not in used and self.mesh.shape[a] > 1)
            used.update(mesh_axes)
            ways = math.prod(self.mesh.shape[a] for a in mesh_axes)
            if shape is not None and shape[dim] % ways:
                raise ConfigError(
                    f"{what}: dimension {dim} ({axis}) has size {shape[dim]}, which mesh axes "
                    f"{'×'.join(mesh_axes)} = {ways} do not divide; change the size or training.distributed"
                )
            parts.append(mesh_axes or None)
        while parts and parts[-1] is None:
            parts.pop()
        return PartitionSpec(*parts)

    def sharding(
        self, axes: LogicalAxes, shape: Sequence[int] | None = None, what: str = "array"
    ) -> NamedSharding:
        """As `spec`, bound to the mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape, what))


_rules: contextvars.ContextVar[AxisRules | None] = contextvars.ContextVar("apt_jax_axis_rules", default=None)


@contextlib.contextmanager
def use_rules(rules: AxisRules | None) -> Iterator[None]:
    """Makes `rules` the ones `constrain` applies while a step is traced."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Pins the sharding of activation `x` by its logical axes; the identity without rules or on one device."""
    rules = _rules.get()
    if rules is None or rules.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, rules.sharding(axes, x.shape, "activation"))


def ways(axis: str) -> int:
    """Pieces that the rules in force cut logical axis `axis` into; 1 without rules."""
    rules = _rules.get()
    return 1 if rules is None else math.prod(rules.mesh.shape[a] for a in rules.rules.get(axis, ()))


def target_platform() -> str:
    """Where the code being traced will run: the platform of the mesh in force, else jax's default."""
    rules = _rules.get()
    return jax.default_backend() if rules is None else rules.mesh.devices.flat[0].platform
