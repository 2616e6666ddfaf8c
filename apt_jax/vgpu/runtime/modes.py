"""What each mode of Virtual Blackwell does: values of config keys, and rules for quantized matmuls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from apt_jax.core.config import Config, default_config, to_config_dict, validate
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.vgpu.runtime.offload import remat_values


@dataclass(frozen=True)
class Mode:
    """One way of trading time or accuracy for memory.

    Attributes:
      description: one phrase.
      values: config keys that it sets, where they have their default.
      quantizes: the projections of the layers are multiplied in `vgpu.recipe`.
    """

    description: str
    values: Mapping[str, Any] = field(default_factory=dict)
    quantizes: bool = False


_BF16 = {"training.mixed_precision": "bf16", "model.remat_policy": "weights"}
_RECOMPUTE = {**_BF16, "model.remat_policy": "full"}

MODES: Mapping[str, Mode] = {
    "balanced": Mode("bf16 compute; attention never as one matrix; no bf16 copies of weights kept", _BF16),
    "memory": Mode("balanced, and each layer's activations are computed again", _RECOMPUTE),
    "speed": Mode("balanced, and quantized matmuls", _BF16, quantizes=True),
    "full": Mode(
        "memory, 8-bit optimizer states, layers in host memory, and quantized matmuls",
        {**_RECOMPUTE, "training.optimizer": "adamw8bit"},
        quantizes=True,
    ),
}


def find_mode(name: str, where: str = "vgpu.mode") -> Mode:
    """The mode by name; raises ConfigError for another one."""
    if name not in MODES:
        raise ConfigError(f"{where}: {unknown_name('mode', name, MODES)}")
    return MODES[name]


def settings_of(config: Config) -> dict[str, Any]:
    """Config keys that the mode and the offload set, where they have their default."""
    return {**find_mode(config.vgpu.mode).values, **remat_values(config)}


def apply_mode(config: Config) -> Config:
    """The config with what `vgpu.mode` sets. A key that has another value than its default keeps it.

    Applied twice, it changes nothing more.

    Raises:
      ConfigError: the changed config is not sound.
    """
    values, standard = to_config_dict(config), default_config()
    changed = {
        key: value
        for key, value in settings_of(config).items()
        if _at(values, key) == _at(standard, key) and _at(values, key) != value
    }
    if not changed:
        return config
    values.update_from_flattened_dict(changed)
    return validate(values, source=f"vgpu.mode={config.vgpu.mode}")


def kept(config: Config) -> dict[str, Any]:
    """Keys that the mode would set but that have a value of their own."""
    values, standard = to_config_dict(config), default_config()
    return {
        key: _at(values, key)
        for key, value in settings_of(config).items()
        if _at(values, key) not in (_at(standard, key), value)
    }


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values
