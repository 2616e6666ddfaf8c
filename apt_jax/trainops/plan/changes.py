"""Changes of a config that might make it fit, tried by the compiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from apt_jax.core.config import Config
from apt_jax.core.configured import configured
from apt_jax.core.errors import AptError
from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.plan.compiled import vocabulary
from apt_jax.trainops.plan.make import make_plan
from apt_jax.trainops.plan.memory import Part
from apt_jax.trainops.plan.offload import offload_values
from apt_jax.trainops.plan.plan import Plan, Remedy
from apt_jax.vgpu.runtime.offload import can_offload, resolve_offload
from apt_jax.vgpu.scheduler import estimate
from apt_jax.vgpu.scheduler.devices import Target

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

_STRONGER = {
    "none": ("weights", "attention", "full"), "weights": ("attention", "full"), "dots": ("attention", "full"),
    "attention": ("full",),
}  # fmt: skip
ERROR = 0.15  # of the closed form's memory, with room to spare: tests hold it to 0.10 on GPUs
# The closed form's names of what a plan has among other causes; the rest is working memory.
_CAUSES = {
    "parameters": "parameters", "optimizer": "optimizer", "batch": "batch", "gradients": "gradients",
    "saved activations": "saved_activations", "stage inputs": "saved_activations", "logits": "logits",
    "weight copies": "weight_copies", "weights of the group": "weight_copies",
}  # fmt: skip
_LAYOUT = ("strategy", "data_parallel", "fsdp_parallel")


@dataclass(frozen=True)
class Change:
    """Values by config key, and the most bytes that they can save of a plan."""

    values: Mapping[str, Any]
    saves: int

    @property
    def options(self) -> tuple[str, ...]:
        """As one would give them on the command line."""
        return tuple(f"--config.{key}={value}" for key, value in self.values.items())

    def apply(self, config: Config) -> Config:
        """The config with these values."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *path, name = key.split(".")
            section = tree
            for each in path:
                section = section.setdefault(each, {})
            section[name] = value
        return _set(config, tree)

    def __add__(self, other: Change) -> Change:
        return Change({**self.values, **other.values}, self.saves + other.saves)


@dataclass(frozen=True)
class Shortage:
    """What `try_changes` reads of a plan, by the closed form: for programs that the compiler itself refuses.

    Attributes:
      mesh, batch_size, accumulation: as in `Plan`.
      excess: bytes beyond the device's memory, at least.
      parts: bytes by the causes of a plan.
    """

    mesh: Mapping[str, int]
    batch_size: int
    accumulation: int
    excess: int
    parts: Mapping[str, Part]

    @staticmethod
    def of(config: Config, target: Target) -> Shortage:
        """Raises ConfigError for a config that the closed form cannot count."""
        training, capacity = config.training, target.device.memory_bytes
        vocab_size, _ = vocabulary(config)
        found = estimate(config, target.count, vocab_size)
        held: dict[str, int] = {}
        for name, size in found.breakdown.items():
            cause = _CAUSES.get(name, "working")
            held[cause] = held.get(cause, 0) + size
        return Shortage(
            mesh={axis: found.parallelism.get(axis, 1) for axis in MESH_AXES},
            batch_size=training.batch_size,
            accumulation=training.gradient_accumulation_steps,
            excess=int(found.memory_per_gpu * (1 - ERROR)) - capacity,
            parts={cause: Part(size, "estimated") for cause, size in held.items()},
        )


def try_changes(
    plan: Plan | Shortage, config: Config, plugins: Plugins, target: Target, most: int = 4
) -> tuple[Remedy, ...]:
    """What makes a plan fit that does not, the cheapest first, up to the first that does.

    A change that cannot save enough by the plan's own breakdown is not compiled. Layers in host memory, the most
    expensive, are tried whatever else was.

    Args:
      plan: of `config`, that does not fit; or what the closed form says of it.
      config, plugins, target: as for `make_plan`.
      most: programs compiled, besides those with layers in host memory.
    """
    config = configured(config, plugins)
    tried: list[Remedy] = []
    for change in candidates(plan, config, target):
        if change.saves < plan.excess or (len(tried) >= most and "vgpu.offload" not in change.values):
            continue
        try:
            changed = make_plan(change.apply(config), plugins, target)
        except AptError as error:
            tried.append(Remedy(change.options, None, False, note=str(error)))
            continue
        tried.append(Remedy(change.options, changed.allocated.total, changed.fits, changed.bounds.bound))
        if changed.fits:
            break
    return tuple(tried)


def candidates(plan: Plan | Shortage, config: Config, target: Target) -> Iterator[Change]:
    """Single changes by rising cost, of time before accuracy; then the same added up one after another.

    At the end layers in host memory: alone, and with all the rest.
    """
    single = [*_accumulate(plan, config), *_shard(plan), *_recompute(plan, config), *_states(plan, config)]
    yield from single
    strongest: dict[tuple[str, ...], Change] = {}
    for change in single:  # of several values of the same keys, the last is the strongest
        strongest[tuple(change.values)] = change
    together = None
    for change in strongest.values():
        whole = change if together is None else together + change
        if together is not None:
            yield whole
        together = whole
    for change in _offload(plan, config, target):
        yield change
        if together is not None:
            yield together + change


def _accumulate(plan: Plan | Shortage, config: Config) -> Iterator[Change]:
    """More and smaller microbatches: the same work in smaller pieces."""
    steps, rows = config.training.gradient_accumulation_steps, plan.batch_size // plan.accumulation
    shards = plan.mesh["data"] * plan.mesh["fsdp"] * plan.mesh["expert"]
    held = _bytes(plan, "saved_activations", "logits", "working", "communication")
    for factor in (2, 4, 8):
        if rows % (factor * shards) == 0:
            yield Change({"training.gradient_accumulation_steps": steps * factor}, held - held // factor)


def _shard(plan: Plan | Shortage) -> Iterator[Change]:
    """Data-parallel copies that share out parameters, gradients and optimizer: more communication."""
    copies = plan.mesh["data"]
    if copies == 1:
        return
    held = _bytes(plan, "parameters", "gradients", "optimizer", "weight_copies")
    values = ("hybrid", 1, copies * plan.mesh["fsdp"])
    layout = {f"training.distributed.{name}": value for name, value in zip(_LAYOUT, values, strict=True)}
    sizes = {"tensor": "tensor", "pipe": "pipeline", "context": "context", "expert": "expert"}
    layout |= {f"training.distributed.{key}_parallel": plan.mesh[axis] for axis, key in sizes.items()
               if plan.mesh[axis] > 1}  # fmt: skip
    yield Change(layout, held - held // copies)


def _recompute(plan: Plan | Shortage, config: Config) -> Iterator[Change]:
    """Copies of weights made anew, which costs next to nothing; then activations, up to a third more arithmetic."""
    for policy in _STRONGER.get(config.model.remat_policy, ()):
        causes = () if policy == "weights" else ("saved_activations", "working")
        yield Change({"model.remat_policy": policy}, _bytes(plan, "weight_copies", *causes))


def _states(plan: Plan | Shortage, config: Config) -> Iterator[Change]:
    """Moments of 8 bits: other numbers, though hardly."""
    if config.training.optimizer == "adamw":
        yield Change({"training.optimizer": "adamw8bit"}, _bytes(plan, "optimizer") * 3 // 4)


def _offload(plan: Plan | Shortage, config: Config, target: Target) -> Iterator[Change]:
    """Layers in host memory, through the device one at a time: as slow as the way there."""
    if can_offload(config) and resolve_offload(config) != "all":
        values = {**offload_values(config, target, "all"), "model.remat_policy": "offload"}
        held = ("parameters", "optimizer", "gradients", "weight_copies", "saved_activations", "working")
        yield Change(values, _bytes(plan, *held))


def _bytes(plan: Plan | Shortage, *causes: str) -> int:
    return sum(plan.parts[cause].bytes for cause in causes if cause in plan.parts)


def _set(section: Any, values: Mapping[str, Any]) -> Any:
    """The section with these values; those of its own sections are mappings."""
    if not values:
        return section
    changed = {
        name: _set(getattr(section, name), value) if is_dataclass(getattr(section, name)) else value
        for name, value in values.items()
    }
    return replace(section, **changed)
