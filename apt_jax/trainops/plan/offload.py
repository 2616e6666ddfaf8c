"""Config values that put what layers hold into host memory, from any config that allows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apt_jax.core.config import Config
from apt_jax.vgpu.scheduler.devices import Target

# Of the modes the one that changes no number: bf16, as accelerators have it anyway, and no quantized matmuls.
_MODE = "balanced"


def offload_values(config: Config, target: Target, offload: str) -> Mapping[str, Any]:
    """Values of config keys for a `vgpu.offload`; Virtual Blackwell is switched on where it is off."""
    if config.vgpu.enabled:
        return {"vgpu.offload": offload}
    values = {"vgpu.enabled": True, "vgpu.mode": _MODE, "vgpu.offload": offload}
    if config.training.mixed_precision == "auto" and target.device.platform == "cpu":
        values["training.mixed_precision"] = "fp32"  # which the mode would change there
    return values
