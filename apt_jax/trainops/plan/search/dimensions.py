"""What a search varies: each dimension is a name and the values that a config can take along it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apt_jax.core.config import Config
from apt_jax.core.layout import divisors
from apt_jax.trainops.plan.offload import offload_values
from apt_jax.vgpu.runtime.offload import can_offload, resolve_offload
from apt_jax.vgpu.scheduler.devices import Target

Values = Mapping[str, Any]  # config key -> value
_LAYOUT = "training.distributed"
_SCHEDULE, _CHUNKS = f"{_LAYOUT}.pipeline_schedule", f"{_LAYOUT}.pipeline_chunks"
_ACCUMULATION = "training.gradient_accumulation_steps"
_REMAT = ("none", "weights", "dots", "attention", "full")  # by rising arithmetic
_OFFLOAD = ("none", "optimizer", "all")  # by rising traffic with the host
_MOST_CHUNKS = 4
# Axes in the order of `MESH_AXES`. Of the architectures that the closed form knows none has experts.
_AXES = ("pipeline", "data", "fsdp", "context", "tensor")


@dataclass(frozen=True)
class Dimension:
    """One thing to vary.

    Attributes:
      name: for reports.
      values: `values(config, target)` gives the alternatives; `config` has the values of the dimensions before it.
        An empty mapping leaves the config as it is.
    """

    name: str
    values: Callable[[Config, Target], Sequence[Values]]


def mesh_shapes(config: Config, target: Target) -> list[Values]:
    """Every way to write the target's count as a product of axis sizes; whether it works is for others to say."""
    given = config.training.distributed
    # These two strategies say what `fsdp` cuts; every other one only chooses sizes.
    strategy = given.strategy if given.strategy in ("zero1", "zero2") else "hybrid"
    fixed = {"strategy": strategy, "world_size": target.count, "expert_parallel": 1}
    if given.strategy == "sequence":
        fixed["sequence_parallel"] = True
    return [
        {f"{_LAYOUT}.{key}": value for key, value in {**fixed, **_sizes(shape)}.items()}
        for shape in factorisations(target.count, len(_AXES))
    ]


def offloads(config: Config, target: Target) -> list[Values]:
    """What of the layers lies in host memory, where training allows it and the way there has a known speed."""
    given = resolve_offload(config)
    if not can_offload(config) or target.device.host_bandwidth is None:
        return [{} if given == "none" else {"vgpu.offload": "none"}]
    others = {name: offload_values(config, target, name) for name in _OFFLOAD}
    return [{} if name == given else others[name] for name in dict.fromkeys((*_OFFLOAD, given))]


def remat_policies(config: Config, target: Target) -> list[Values]:
    """What the forward pass keeps, or sends to the host with all else."""
    offload, names = resolve_offload(config), _REMAT
    if offload == "all":
        names = ("offload",)
    elif offload == "state":
        names = tuple(name for name in _REMAT if name not in ("none", "weights"))
    elif config.vgpu.enabled:  # its modes put another in place of none
        names = tuple(name for name in _REMAT if name != "none")
    return [{"model.remat_policy": name} for name in names]


def accumulations(config: Config, target: Target) -> list[Values]:
    """Microbatches that the batch can be cut into; the batch itself stays."""
    return [{_ACCUMULATION: count} for count in divisors(config.training.batch_size)]


def pipeline_schedules(config: Config, target: Target) -> list[Values]:
    """Orders of the microbatches, where there are stages."""
    layout = config.training.distributed
    if layout.pipeline_parallel == 1:
        plain: Values = {_SCHEDULE: "1f1b", _CHUNKS: 1}
        return [{} if layout.pipeline_schedule != "interleaved" else plain]
    chunks = range(2, _MOST_CHUNKS + 1)
    return [
        *({_SCHEDULE: name, _CHUNKS: 1} for name in ("gpipe", "1f1b", "zero_bubble")),
        *({_SCHEDULE: "interleaved", _CHUNKS: count} for count in chunks),
    ]


# What changes the numbers that are learned is the user's choice: optimizer states and quantized matmuls stay, and so
# does `vgpu.mode`, but that offloading switches its plainest on.
DIMENSIONS: tuple[Dimension, ...] = (
    Dimension("mesh", mesh_shapes),
    Dimension("offload", offloads),
    Dimension("remat", remat_policies),
    Dimension("accumulation", accumulations),
    Dimension("schedule", pipeline_schedules),
)
NOT_SEARCHED = "not searched: what changes numerics, as training.optimizer=adamw8bit, vgpu.mode (apt-jax vb report)"


def factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every ordered tuple of `parts` factors whose product is `number`, in lexical order."""
    if parts == 1:
        yield (number,)
        return
    for first in divisors(number):
        for rest in factorisations(number // first, parts - 1):
            yield (first, *rest)


def _sizes(shape: tuple[int, ...]) -> dict[str, int]:
    return {f"{axis}_parallel": size for axis, size in zip(_AXES, shape, strict=True)}
