"""`parallelism_config`: axis sizes by any of their usual names, and the factorisations that a model allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.core.layout import DEFAULT_RULES, MESH_AXES
from apt_jax.vgpu.scheduler.shapes import ARCHITECTURES, parameters

Sizes = dict[str, int]  # mesh axis -> devices

NAMES = {axis: "pipeline" if axis == "pipe" else axis for axis in MESH_AXES}  # mesh axis -> as people write it
_BY_NAME = {
    f"{stem}{suffix}": axis
    for axis, name in NAMES.items()
    for stem in {axis, name}
    for suffix in ("", "_parallel", "_parallel_size")
}
# What else of `training.distributed` may be given; strategy and world_size follow from the rest.
OPTIONS = ("sequence_parallel", "context_method", "pipeline_schedule", "pipeline_chunks", "slices")
_DEEPEST = 64  # pipeline stages that are ever proposed


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


def factorisations(
    world_size: int, model: ModelConfig, vocab_size: int, length: int, fixed: Mapping[str, int], most_tensor: int
) -> list[Sizes]:
    """Every way to spread a model over exactly `world_size` devices, as far as sizes alone can tell.

    Args:
      world_size: devices.
      model: whose layers, heads and widths the axes must divide.
      vocab_size: rows of the embedding.
      length: tokens per row.
      fixed: axes whose sizes are given; `expert` and `context` are 1 unless given.
      most_tensor: largest tensor size proposed.
    """
    return [sizes for sizes in _products(world_size, model, fixed, most_tensor)
            if divides(sizes, model, vocab_size, length)]  # fmt: skip


def _products(world_size: int, model: ModelConfig, fixed: Mapping[str, int], most_tensor: int) -> Iterator[Sizes]:
    expert, context = fixed.get("expert", 1), fixed.get("context", 1)
    rest, remainder = divmod(world_size, expert * context)
    if remainder:
        return
    for tensor in _choices("tensor", fixed, rest, most_tensor):
        for pipe in _choices("pipe", fixed, rest // tensor, min(_DEEPEST, model.num_layers)):
            for fsdp in _choices("fsdp", fixed, rest // tensor // pipe, rest):
                data = rest // tensor // pipe // fsdp
                if fixed.get("data", data) == data:
                    values = (pipe, data, fsdp, expert, context, tensor)
                    yield dict(zip(MESH_AXES, values, strict=True))


def _choices(axis: str, fixed: Mapping[str, int], number: int, most: int) -> list[int]:
    if axis in fixed:
        return [fixed[axis]] if number % fixed[axis] == 0 else []
    return [n for n in divisors(number) if n <= most]


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def divides(sizes: Mapping[str, int], model: ModelConfig, vocab_size: int, length: int) -> bool:
    """Whether the sizes divide layers, heads, widths, row, and every parameter of a shipped architecture."""
    tensor = sizes["tensor"]
    heads = model.num_attention_heads, model.num_key_value_heads or model.num_attention_heads
    if any(number % tensor for number in (*heads, model.intermediate_size)) or model.num_layers % sizes["pipe"]:
        return False
    if sizes["context"] > 1 and length % (2 * sizes["context"]):
        return False
    if model.architecture not in ARCHITECTURES:
        return True
    return all(_cut(t.shape, t.axes, sizes) for t in parameters(model, vocab_size))


def _cut(shape: Sequence[int], names: Sequence[str], sizes: Mapping[str, int]) -> bool:
    used: set[str] = set()
    for length, name in zip(shape, names, strict=True):
        mine = [axis for axis in DEFAULT_RULES.get(name, ()) if axis not in used]
        used.update(mine)
        if length % math.prod(sizes[axis] for axis in mine):
            return False
    return True


def nearest(given: Mapping[str, int], allowed: Sequence[Sizes], count: int = 3) -> list[Sizes]:
    """Of the allowed factorisations those that change the given sizes by the smallest factors."""

    def distance(sizes: Sizes) -> float:
        # What was asked for weighs more than what was left open.
        return sum(abs(math.log(sizes[axis] / given.get(axis, 1))) * (4 if axis in given else 1) for axis in sizes)

    return sorted(allowed, key=distance)[:count]
