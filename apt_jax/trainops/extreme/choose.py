"""The layout: as given, or the one that fits and costs least by a rough count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from apt_jax.core.config import Config, to_config_dict, validate
from apt_jax.core.config.parallel_rules import parallel
from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES, resolve_layout
from apt_jax.trainops.extreme.axes import KEYS, NAMES, Sizes, axes_text, factorisations, nearest, sizes_of
from apt_jax.trainops.extreme.base import SOURCE, Base
from apt_jax.trainops.extreme.cost import rough_seconds
from apt_jax.vgpu.scheduler import Device, Estimate, estimate
from apt_jax.vgpu.scheduler.estimator import FILL
from apt_jax.vgpu.scheduler.mesh import Mesh
from apt_jax.vgpu.scheduler.shapes import ARCHITECTURES, count_parameters, parameters

_DEEPEST = 64  # pipeline stages that are ever proposed
_SPARE = 64  # hosts more or fewer that are looked at for a number of devices that fits
_FULL_PIPELINE = 4  # microbatches per stage where they are not given: the bubble is a fifth or less
_BATCH = "training.batch_size"


@dataclass(frozen=True)
class Machine:
    """Devices to spread a model over.

    Attributes:
      device: with the machine's links.
      world_size: devices.
    """

    device: Device
    world_size: int

    @property
    def most_tensor(self) -> int:
        """Devices that tensor parallelism stays within, where it is chosen."""
        return self.device.links[0].devices or self.device.per_host


def given_layout(base: Base, machine: Machine, axes: Mapping[str, int]) -> Sizes:
    """Sizes of all axes where `data` or `fsdp` is given: the other, if left out, takes the devices that are left.

    Raises:
      ConfigError: the product is not the number of devices; the line names the nearest that are.
    """
    given: dict[str, Any] = {KEYS[axis]: size for axis, size in axes.items()}
    try:
        return resolve_layout(DistributedConfig(strategy="hybrid", **given), machine.world_size, 0).sizes
    except ConfigError:
        raise ConfigError(_wrong_product(base, machine, axes)) from None


def chosen_layout(base: Base, machine: Machine, axes: Mapping[str, int]) -> Config:
    """The config with the layout that fits the devices' memory by the closed form and costs least; see `cost`.

    Args:
      base: model and training.
      machine: devices.
      axes: sizes that are kept.

    Raises:
      ConfigError: nothing divides, nothing fits, or the closed form does not know the model; with the remedy.
    """
    allowed = allowed_layouts(base, machine, axes)
    given = f" with {axes_text(axes)}" if axes else ""
    if not allowed:
        configure(base, {axis: axes.get(axis, 1) for axis in MESH_AXES})  # raises for what these alone do not divide
        if machine.world_size % math.prod(axes.values()):
            raise ConfigError(_wrong_product(base, machine, axes))
        near = _elsewhere(base, machine, axes)
        other = f"; {near} would do" if near else "; choose other sizes, or a world_size with more divisors"
        raise ConfigError(
            f"world_size: {base.name} cannot be spread over {machine.world_size:,} devices{given}: no factorisation "
            f"divides its layers, heads and widths{other}"
        )
    shared = [sizes for sizes in allowed if _BATCH not in _broken(base, sizes)]
    if not shared:
        least = min(Mesh.sized(sizes).rows * _microbatches(base, sizes) for sizes in allowed)
        raise ConfigError(
            f"{_BATCH}: {base.config.training.batch_size:,} sequences cannot be shared by any layout of "
            f"{machine.world_size:,} devices{given}; make it a multiple of {least:,}"
        )
    found = _fitting(base, machine, shared)
    if isinstance(found, Config):
        return found
    near = _elsewhere(base, machine, axes)
    remedy = f"{near} would do" if near else "use more devices, or a device with more memory"
    raise ConfigError(
        f"world_size: no layout of {base.name} fits {machine.world_size:,} × {machine.device.name}{given}: the least "
        f"that one needs is {found.memory_per_gpu / 2**30:.1f} GiB each ({axes_text(found.parallelism)}), of "
        f"{machine.device.memory_bytes * FILL / 2**30:.1f} that may be filled; {remedy}"
    )


def configure(base: Base, sizes: Mapping[str, int]) -> Config:
    """The config with a layout, and where the batch is open, with one sequence per data-parallel rank and microbatch.

    Raises:
      ConfigError: what the layout does not divide, as in training.
    """
    return validate(to_config_dict(_laid_out(base, sizes)), source=SOURCE)


def advice(base: Base, machine: Machine) -> str:
    """Other layouts and numbers of devices that fit by the closed form, in a phrase; empty if none is near."""
    try:
        config = chosen_layout(base, machine, {})
    except ConfigError:
        return _elsewhere(base, machine, {})
    return axes_text(sizes_of(config.training.distributed))


def allowed_layouts(base: Base, machine: Machine, axes: Mapping[str, int]) -> list[Sizes]:
    """Every layout on a machine that keeps the given sizes and that training accepts, but for the batch."""
    model = base.config.model
    most = {"tensor": machine.most_tensor, "pipe": min(_DEEPEST, model.num_layers)}
    # Of other architectures nobody knows the parameters before the model is made.
    tensors = parameters(model, base.vocab_size) if model.architecture in ARCHITECTURES else ()
    return [
        sizes
        for sizes in factorisations(machine.world_size, axes, most)
        if _broken(base, sizes) <= {_BATCH} and all(Mesh.sized(sizes).divides(t.shape, t.axes) for t in tensors)
    ]


def _laid_out(base: Base, sizes: Mapping[str, int]) -> Config:
    """As `configure`, unchecked."""
    training, micros = base.config.training, _microbatches(base, sizes)
    given: dict[str, Any] = {KEYS[axis]: size for axis, size in sizes.items()}
    layout = replace(training.distributed, strategy="hybrid", world_size=math.prod(sizes.values()), **given)
    batch = training.batch_size if base.batch_given else Mesh.sized(sizes).rows * micros
    return replace(
        base.config,
        training=replace(training, distributed=layout, batch_size=batch, gradient_accumulation_steps=micros),
    )


def _broken(base: Base, sizes: Mapping[str, int]) -> set[str]:
    """Keys of the rules of a config that a layout breaks."""
    return {problem.key for problem in parallel(_laid_out(base, sizes))}


def _microbatches(base: Base, sizes: Mapping[str, int]) -> int:
    """As given; else one, or enough to keep a pipeline busy."""
    micros = base.config.training.gradient_accumulation_steps
    if base.batch_given or micros > 1 or sizes["pipe"] == 1:
        return micros
    return _FULL_PIPELINE * sizes["pipe"]


def _fitting(base: Base, machine: Machine, allowed: list[Sizes]) -> Config | Estimate:
    """The cheapest config that fits; else the estimate of the smallest."""
    params = count_parameters(base.config.model, base.vocab_size)
    room = FILL * machine.device.memory_bytes
    candidates = [(sizes, _laid_out(base, sizes)) for sizes in allowed]
    candidates.sort(key=lambda each: rough_seconds(each[1], machine.device, each[0], params))
    smallest: Estimate | None = None
    for sizes, config in candidates:
        # Weights and gradients alone, before the closed form is asked.
        if smallest is not None and 8 * params / (sizes["tensor"] * sizes["pipe"] * sizes["fsdp"]) > room:
            continue
        found = estimate(config, vocab_size=base.vocab_size)
        if found.memory_per_gpu <= room:
            return configure(base, sizes)
        if smallest is None or found.memory_per_gpu < smallest.memory_per_gpu:
            smallest = found
    assert smallest is not None
    return smallest


def _elsewhere(base: Base, machine: Machine, axes: Mapping[str, int]) -> str:
    """The next smaller and larger numbers of devices, in whole hosts, that something fits."""
    if machine.device.topologies:  # slices come in few sizes; a count beside one cannot be had
        return ""
    host, found = machine.device.per_host, []
    start = machine.world_size // host
    for direction in (-1, 1):
        for step in range(1, _SPARE + 1):
            count = (start + direction * step) * host
            if count < 1:
                break
            other = Machine(machine.device, count)
            allowed = [sizes for sizes in allowed_layouts(base, other, axes) if _BATCH not in _broken(base, sizes)]
            if allowed and isinstance(config := _fitting(base, other, allowed), Config):
                found.append(f"world_size={count} ({axes_text(sizes_of(config.training.distributed))})")
                break
    return " or ".join(found)


def _wrong_product(base: Base, machine: Machine, axes: Mapping[str, int]) -> str:
    given = " × ".join(f"{NAMES[axis]} {axes[axis]:,}" for axis in MESH_AXES if axis in axes)
    kept = {axis: axes[axis] for axis in ("expert", "context") if axis in axes}
    near = nearest(axes, allowed_layouts(base, machine, kept)) or nearest(axes, allowed_layouts(base, machine, {}))
    verb = "but world_size is" if {"data", "fsdp"} <= axes.keys() else "which do not divide world_size"
    options = "; ".join(axes_text(sizes) for sizes in near)
    remedy = f"the nearest that {base.name} allows: {options}" if options else "use another world_size"
    return (
        f"parallelism_config: {given} = {math.prod(axes.values()):,} devices, {verb} {machine.world_size:,}; {remedy}"
    )
