"""`parallelism_config`: axis sizes by any of their usual names, and all that a number of devices has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.core.layout import MESH_AXES, divisors

Sizes = dict[str, int]  # mesh axis -> devices

NAMES = {axis: "pipeline" if axis == "pipe" else axis for axis in MESH_AXES}  # mesh axis -> as people write it
KEYS = {axis: f"{name}_parallel" for axis, name in NAMES.items()}  # mesh axis -> key of `training.distributed`
_BY_NAME = {
    f"{stem}{suffix}": axis
    for axis, name in NAMES.items()
    for stem in {axis, name}
    for suffix in ("", "_parallel", "_parallel_size")
}
# What else of `training.distributed` may be given; strategy and world_size follow from the rest.
OPTIONS = ("sequence_parallel", "context_method", "pipeline_schedule", "pipeline_chunks", "slices")


def read_axes(given: Mapping[str, Any]) -> tuple[Sizes, dict[str, Any]]:
    """(sizes of the axes that are given, other keys of `training.distributed`).

    Raises:
      ConfigError: an unknown key, an axis given twice, or a size that is no whole number from 1 up.
    """
    sizes: Sizes = {}
    options: dict[str, Any] = {}
    for key, value in given.items():
        if key in OPTIONS:
            options[key] = value
            continue
        if key not in _BY_NAME:
            known = unknown_name("key", str(key), (*NAMES.values(), *OPTIONS))
            raise ConfigError(f"parallelism_config: {known}; sizes also as data_parallel or data_parallel_size")
        axis = _BY_NAME[key]
        if axis in sizes:
            raise ConfigError(f"parallelism_config: {NAMES[axis]} is given twice; leave one of them out")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"parallelism_config: {key}: {value!r} is not a whole number from 1 up")
        sizes[axis] = value
    return sizes, options


def axes_text(sizes: Mapping[str, int]) -> str:
    """`data 3,125 × fsdp 4 × tensor 8`, without axes of size 1."""
    shown = [f"{NAMES[axis]} {sizes[axis]:,}" for axis in MESH_AXES if sizes.get(axis, 1) > 1]
    return " × ".join(shown) or "all 1"


def sizes_of(layout: DistributedConfig) -> Sizes:
    """Sizes of all axes, in mesh order; of a config in which none is open."""
    return {axis: getattr(layout, key) for axis, key in KEYS.items()}


def factorisations(world_size: int, fixed: Mapping[str, int], most: Mapping[str, int]) -> Iterator[Sizes]:
    """Every way to write `world_size` as a product of axis sizes.

    Args:
      world_size: devices.
      fixed: axes whose sizes are given; `expert` and `context` are 1 unless given.
      most: largest sizes of the others; any that is left out has none.
    """
    expert, context = fixed.get("expert", 1), fixed.get("context", 1)
    rest, remainder = divmod(world_size, expert * context)
    if remainder:
        return
    for tensor in _choices("tensor", fixed, rest, most):
        for pipe in _choices("pipe", fixed, rest // tensor, most):
            for fsdp in _choices("fsdp", fixed, rest // tensor // pipe, most):
                data = rest // tensor // pipe // fsdp
                if fixed.get("data", data) == data:
                    values = (pipe, data, fsdp, expert, context, tensor)
                    yield dict(zip(MESH_AXES, values, strict=True))


def _choices(axis: str, fixed: Mapping[str, int], number: int, most: Mapping[str, int]) -> list[int]:
    if axis in fixed:
        return [fixed[axis]] if number % fixed[axis] == 0 else []
    return [n for n in divisors(number) if n <= most.get(axis, number)]


def nearest(given: Mapping[str, int], allowed: Sequence[Sizes], count: int = 3) -> list[Sizes]:
    """Of the allowed factorisations those that change the given sizes by the smallest factors."""

    def distance(sizes: Sizes) -> float:
        # What was asked for weighs more than what was left open.
        return sum(abs(math.log(sizes[axis] / given.get(axis, 1))) * (4 if axis in given else 1) for axis in sizes)

    return sorted(allowed, key=distance)[:count]
