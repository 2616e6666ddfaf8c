"""Virtual Blackwell's front doors.

    import apt_jax.vgpu.runtime as vb
    vb.enable(mode="memory")                    # this process
    ENABLE_VIRTUAL_BLACKWELL=1 VB_MODE=memory   # this shell
    --config.vgpu.enabled=true --config.vgpu.mode=memory

Arguments go before the environment, the environment before `.vbrc`, and that before the config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apt_jax.core.lazy import lazy_exports

if TYPE_CHECKING:
    from apt_jax.vgpu.memory.tiers import VGPUStack, create_vgpu_stack
    from apt_jax.vgpu.runtime.adapter import VirtualBlackwellAdapter, enable_vb_optimization
    from apt_jax.vgpu.runtime.modes import MODES, Mode
    from apt_jax.vgpu.runtime.settings import Settings
    from apt_jax.vgpu.runtime.switch import (
        disable,
        enable,
        enable_balanced_mode,
        enable_full_optimization,
        enable_memory_mode,
        enable_speed_mode,
        get_config,
        get_stack,
        is_enabled,
        print_stats,
    )

_SWITCH = (
    "disable", "enable", "enable_balanced_mode", "enable_full_optimization", "enable_memory_mode", "enable_speed_mode",
    "get_config", "get_stack", "is_enabled", "print_stats",
)  # fmt: skip
_MODULES = {
    **dict.fromkeys(_SWITCH, "apt_jax.vgpu.runtime.switch"),
    **dict.fromkeys(("MODES", "Mode"), "apt_jax.vgpu.runtime.modes"),
    "Settings": "apt_jax.vgpu.runtime.settings",
    **dict.fromkeys(("VirtualBlackwellAdapter", "enable_vb_optimization"), "apt_jax.vgpu.runtime.adapter"),
    **dict.fromkeys(("VGPUStack", "create_vgpu_stack"), "apt_jax.vgpu.memory.tiers"),
}

__all__ = [
    "MODES", "Mode", "Settings", "VGPUStack", "VirtualBlackwellAdapter", "create_vgpu_stack", "disable", "enable",
    "enable_balanced_mode", "enable_full_optimization", "enable_memory_mode", "enable_speed_mode",
    "enable_vb_optimization", "get_config", "get_stack", "is_enabled", "print_stats",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
