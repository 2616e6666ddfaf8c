"""Logical axis names and how they map onto the mesh.

Parameters and activations name their axes ("batch", "embed", "mlp" …); an ordered rule list says
which mesh axes each name may use. A mesh axis serves an array once: the first dimension that asks
for it gets it, as in flax's logical partitioning.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.core.errors import ConfigError, unknown_name

LogicalAxes = Sequence[str | None]


@dataclass(frozen=True)
class AxisRules:
    """A mesh and, per logical axis name, the mesh axes it is sharded over.

    Attributes:
      mesh: the six-axis mesh.
      rules: mesh axes by logical name.
      attend: `attend(kernel, q_BTNH, k_BSKH, v_BSKH, mask, *, scale) -> o_BTNH`, how an attention kernel runs
        on this mesh; None: as it is. Set where the sequence is cut over devices.
      layers_on_host: parameters of layers lie in host memory; a layer's are taken to the device when it runs.
    """

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]
    attend: Callable[..., jax.Array] | None = None
    layers_on_host: bool = False

    def spec(
        self,
        axes: LogicalAxes,
        shape: Sequence[int] | None = None,
        what: str = "array",
        *,
        taken: Collection[str] = (),
    ) -> PartitionSpec:
        """Maps logical axes to a `PartitionSpec`.

        Args:
          axes: one logical name (or None: replicated) per dimension.
          shape: sizes to check divisibility against; None skips the check.
          what: the array's name for the error message.
          taken: mesh axes that are not to be used.

        Raises:
          ConfigError: an unknown logical axis, or a size its mesh axes do not divide.
        """
        used = set(taken)
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
                    f"{'×'.join(mesh_axes)} = {ways} do not divide; {_remedy(axis, shape[dim], ways)}"
                )
            parts.append(mesh_axes or None)
        while parts and parts[-1] is None:
            parts.pop()
        return PartitionSpec(*parts)

    def ways(self, axis: str) -> int:
        """Pieces that logical axis `axis` is cut into where nothing else competes for its mesh axes."""
        return math.prod(self.mesh.shape[a] for a in self.rules.get(axis, ()))

    def sharding(
        self, axes: LogicalAxes, shape: Sequence[int] | None = None, what: str = "array"
    ) -> NamedSharding:
        """As `spec`, bound to the mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape, what))


def _remedy(axis: str, size: int, ways: int) -> str:
    if axis == "vocab":
        return f"set model.vocab_size={-(-size // ways) * ways}, which pads the table"
    return "change the size or training.distributed"


_rules: contextvars.ContextVar[AxisRules | None] = contextvars.ContextVar("apt_jax_axis_rules", default=None)


@contextlib.contextmanager
def use_rules(rules: AxisRules | None) -> Iterator[None]:
    """Makes `rules` the ones `constrain` applies while a step is traced."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def rules_in_force() -> AxisRules | None:
    """The rules of the step being traced; None outside of one."""
    return _rules.get()


def auto_mesh(mesh: Any) -> Any:
    """`mesh` as the code being traced sees it: inside a `shard_map`, the axes it took are manual."""
    abstract = jax.sharding.get_abstract_mesh()
    return mesh if abstract.empty else abstract


def _taken(mesh: Any) -> set[str]:
    """The axes that an enclosing `shard_map` has already taken, and `pipe`, which cuts no activation."""
    return {*getattr(mesh, "manual_axes", ()), "pipe"}


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Pins the sharding of activation `x` by its logical axes; the identity without rules or on one device."""
    rules = _rules.get()
    if rules is None or rules.mesh.size == 1:
        return x
    mesh = auto_mesh(rules.mesh)
    spec = rules.spec(axes, x.shape, "activation", taken=_taken(mesh))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def pin(tree: Any, shardings: Any, lead: int = 0) -> Any:
    """Constrains arrays to their shardings, a tree alike, over the axes that are not manual here.

    Args:
      lead: axes that the arrays have in front of those that the shardings speak of; negative: that they lack.
    """

    def place(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        mesh = auto_mesh(sharding.mesh)
        manual = getattr(mesh, "manual_axes", ())

        def free(part: Any) -> Any:
            names = () if part is None else (part,) if isinstance(part, str) else part
            return tuple(name for name in names if name not in manual) or None

        spec = PartitionSpec(*[None] * lead, *map(free, sharding.spec[max(0, -lead) :]))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree, shardings)


def mesh_axes(rules: AxisRules, axes: LogicalAxes) -> tuple[tuple[str, ...], ...]:
    """Mesh axes larger than 1 that cut each dimension of an array on the mesh as it is seen here."""
    spec = rules.spec(axes, taken=_taken(auto_mesh(rules.mesh)))
    parts = [*spec, *[None] * (len(axes) - len(spec))]
    return tuple(() if part is None else (part,) if isinstance(part, str) else tuple(part) for part in parts)


def per_device(
    f: Callable[..., Any], rules: AxisRules, in_axes: Sequence[LogicalAxes], out_axes: Any
) -> Callable[..., Any]:
    """`f` on each device's own shards: a `shard_map` over every mesh axis that is not manual yet.

    Works at top level and inside another `shard_map`. Collectives in `f` name mesh axes; `f` must give the
    same result on devices that hold the same shard.

    Args:
      f: called with local shards.
      rules: in force.
      in_axes: logical axes of each array argument.
      out_axes: logical axes of the result, or a tuple of them for several results.
    """
    mesh = auto_mesh(rules.mesh)

    def spec(axes: LogicalAxes) -> PartitionSpec:
        return rules.spec(axes, taken=_taken(mesh))

    several = bool(out_axes) and not isinstance(out_axes[0], str | None)
    return jax.shard_map(
        f,
        mesh=mesh,
        in_specs=tuple(map(spec, in_axes)),
        out_specs=tuple(map(spec, out_axes)) if several else spec(out_axes),
        axis_names=set(mesh.axis_names) - set(getattr(mesh, "manual_axes", ())),
        check_vma=False,
    )


def ways(axis: str) -> int:
    """Pieces that the rules in force cut logical axis `axis` into, as the code being traced sees it."""
    rules = _rules.get()
    if rules is None:
        return 1
    return math.prod(rules.mesh.shape[a] for a in mesh_axes(rules, (axis,))[0])


def target_platform() -> str:
    """Where the code being traced will run: the platform of the mesh in force, else jax's default."""
    rules = _rules.get()
    return jax.default_backend() if rules is None else rules.mesh.devices.flat[0].platform


def target_capability() -> tuple[int, int] | None:
    """CUDA compute capability of where the code being traced will run, as (9, 0); None: no NVIDIA GPU.

    Devices of a topology have one too, so that a program planned for a GPU is the program that will run on it.
    """
    rules = _rules.get()
    device = jax.devices()[0] if rules is None else rules.mesh.devices.flat[0]
    version = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return None if version is None else (int(version[1]), int(version[2]))
