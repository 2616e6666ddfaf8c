"""The layout: as given, or the one that fits and costs least by a rough count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apt_jax.core.config import Config, to_config_dict, validate
from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.extreme.axes import NAMES, Sizes, axes_text, factorisations, nearest
from apt_jax.trainops.extreme.base import Base
from apt_jax.trainops.extreme.cost import rough_seconds
from apt_jax.vgpu.scheduler import Device, Estimate, estimate
from apt_jax.vgpu.scheduler.shapes import count_parameters

FILL = 0.95  # of a device's memory that a closed form may fill, as in `quick_estimate`
_SPARE = 64  # hosts more or fewer that are looked at for a number of devices that fits
_FULL_PIPELINE = 4  # microbatches per stage where they are not given: the bubble is a fifth or less
_SOURCE = "ExtremeScaleTrainer"


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
    """Sizes of all axes when `data` or `fsdp` is given, or their product leaves nothing open.

    Raises:
      ConfigError: the product is not the number of devices; the line names the nearest that are.
    """
    sizes = {axis: axes.get(axis, 1) for axis in MESH_AXES}
    product = _product(sizes)
    both = "data" in axes and "fsdp" in axes
    rest, remainder = divmod(machine.world_size, product)
    if remainder or (both and rest != 1):
        raise ConfigError(_wrong_product(base, machine, axes, product, both))
    if not both:
        sizes["fsdp" if "data" in axes else "data"] = rest
    return sizes


def chosen_layout(base: Base, machine: Machine, axes: Mapping[str, int], options: Mapping[str, Any]) -> Config:
    """The config with the layout that fits the devices' memory by the closed form and costs least; see `cost`.

    Args:
      base: model and training.
      machine: devices.
      axes: sizes that are kept.
      options: other keys of `training.distributed`.

    Raises:
      ConfigError: nothing divides, nothing fits, or the closed form does not know the model; with the remedy.
    """
    allowed = _allowed(base, machine, axes)
    given = f" with {axes_text(axes)}" if axes else ""
    if not allowed:
        given_sizes = {axis: axes.get(axis, 1) for axis in MESH_AXES}
        configure(base, given_sizes, options)  # raises for what the given sizes alone do not divide
        if machine.world_size % (product := _product(given_sizes)):
            raise ConfigError(_wrong_product(base, machine, axes, product, both=False))
        near = _elsewhere(base, machine, axes, options)
        other = f"; {near} would do" if near else "; choose other sizes, or a world_size with more divisors"
        raise ConfigError(
            f"world_size: {base.name} cannot be spread over {machine.world_size:,} devices{given}: no factorisation "
            f"divides its layers, heads and widths{other}"
        )
    shared = [sizes for sizes in allowed if _shares(base, sizes)]
    if not shared:
        least = min(_rows(sizes) * _microbatches(base, sizes) for sizes in allowed)
        raise ConfigError(
            f"training.batch_size: {base.config.training.batch_size:,} sequences cannot be shared by any layout of "
            f"{machine.world_size:,} devices{given}; make it a multiple of {least:,}"
        )
    found = _fitting(base, machine, shared, options)
    if isinstance(found, Config):
        return found
    near = _elsewhere(base, machine, axes, options)
    remedy = f"{near} would do" if near else "use more devices, or a device with more memory"
    raise ConfigError(
        f"world_size: no layout of {base.name} fits {machine.world_size:,} × {machine.device.name}{given}: the least "
        f"that one needs is {found.memory_per_gpu / 2**30:.1f} GiB each ({axes_text(found.parallelism)}), of "
        f"{machine.device.memory_bytes * FILL / 2**30:.1f} that may be filled; {remedy}"
    )


def configure(base: Base, sizes: Mapping[str, int], options: Mapping[str, Any]) -> Config:
    """The config with a layout, and where the batch is open, with one sequence per data-parallel rank and microbatch.

    Raises:
      ConfigError: what the layout does not divide, as in training.
    """
    changed = to_config_dict(base.config)
    micros = _microbatches(base, sizes)
    values: dict[str, Any] = {
        "training.distributed.strategy": "hybrid",
        "training.distributed.world_size": _product(sizes),
        "training.gradient_accumulation_steps": micros,
    }
    values |= {f"training.distributed.{NAMES[axis]}_parallel": size for axis, size in sizes.items()}
    values |= {f"training.distributed.{key}": value for key, value in options.items()}
    if not base.batch_given:
        values["training.batch_size"] = _rows(sizes) * micros
    changed.update_from_flattened_dict(values)
    return validate(changed, source=_SOURCE)


def advice(base: Base, machine: Machine, options: Mapping[str, Any]) -> str:
    """Other layouts and numbers of devices that fit by the closed form, in a phrase; empty if none is near."""
    try:
        config = chosen_layout(base, machine, {}, options)
    except ConfigError:
        return _elsewhere(base, machine, {}, options)
    layout = config.training.distributed
    return axes_text({axis: getattr(layout, f"{name}_parallel") for axis, name in NAMES.items()})


def _fitting(base: Base, machine: Machine, allowed: list[Sizes], options: Mapping[str, Any]) -> Config | Estimate:
    """The cheapest config that fits; else the estimate of the smallest."""
    params = count_parameters(base.config.model, base.vocab_size)
    room = FILL * machine.device.memory_bytes
    micros = {id(sizes): _microbatches(base, sizes) for sizes in allowed}

    def seconds(sizes: Sizes) -> float:
        return rough_seconds(base, machine.device, sizes, params, micros[id(sizes)])

    smallest: Estimate | None = None
    for sizes in sorted(allowed, key=seconds):
        # Weights and gradients alone, before the closed form is asked.
        if smallest is not None and 8 * params / (sizes["tensor"] * sizes["pipe"] * sizes["fsdp"]) > room:
            continue
        config = configure(base, sizes, options)
        found = estimate(config, vocab_size=base.vocab_size)
        if found.memory_per_gpu <= room:
            return config
        if smallest is None or found.memory_per_gpu < smallest.memory_per_gpu:
            smallest = found
    assert smallest is not None
    return smallest


def _elsewhere(base: Base, machine: Machine, axes: Mapping[str, int], options: Mapping[str, Any]) -> str:
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
            allowed = [sizes for sizes in _allowed(base, other, axes) if _shares(base, sizes)]
            if allowed and isinstance(config := _fitting(base, other, allowed, options), Config):
                layout = config.training.distributed
                sizes = {axis: getattr(layout, f"{name}_parallel") for axis, name in NAMES.items()}
                found.append(f"world_size={count} ({axes_text(sizes)})")
                break
    return " or ".join(found)


def _allowed(base: Base, machine: Machine, axes: Mapping[str, int]) -> list[Sizes]:
    return factorisations(
        machine.world_size, base.config.model, base.vocab_size, base.length, axes, machine.most_tensor
    )


def _wrong_product(base: Base, machine: Machine, axes: Mapping[str, int], product: int, both: bool) -> str:
    given = " × ".join(f"{NAMES[axis]} {axes[axis]:,}" for axis in MESH_AXES if axis in axes) or "all 1"
    kept = {axis: axes[axis] for axis in ("expert", "context") if axis in axes}
    near = nearest(axes, _allowed(base, machine, kept)) or nearest(axes, _allowed(base, machine, {}))
    verb = "but world_size is" if both else "which do not divide world_size"
    options = "; ".join(axes_text(sizes) for sizes in near)
    remedy = f"the nearest that {base.name} allows: {options}" if options else "use another world_size"
    return f"parallelism_config: {given} = {product:,} devices, {verb} {machine.world_size:,}; {remedy}"


def _shares(base: Base, sizes: Mapping[str, int]) -> bool:
    """Whether the batch can be shared equally."""
    if not base.batch_given:
        return True
    micros = _microbatches(base, sizes)
    batch = base.config.training.batch_size
    return batch % micros == 0 and batch // micros % _rows(sizes) == 0


def _microbatches(base: Base, sizes: Mapping[str, int]) -> int:
    """As given; else one, or enough to keep a pipeline busy."""
    micros = base.config.training.gradient_accumulation_steps
    if base.batch_given or micros > 1 or sizes["pipe"] == 1:
        return micros
    return _FULL_PIPELINE * sizes["pipe"]


def _rows(sizes: Mapping[str, int]) -> int:
    return sizes["data"] * sizes["fsdp"] * sizes["expert"]


def _product(sizes: Mapping[str, int]) -> int:
    product = 1
    for size in sizes.values():
        product *= size
    return product
