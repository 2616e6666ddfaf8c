"""Devices and how many of them a model needs; nothing here imports jax before it has to."""

from __future__ import annotations

from apt_jax.core.lazy import lazy_exports

# Name -> module, imported when the name is first used.
_PUBLIC = {
    "Estimate": "apt_jax.vgpu.scheduler.estimator",
    "MemoryEstimate": "apt_jax.vgpu.scheduler.estimator",
    "VGPUResourceEstimator": "apt_jax.vgpu.scheduler.estimator",
    "estimate": "apt_jax.vgpu.scheduler.estimator",
    "quick_estimate": "apt_jax.vgpu.scheduler.estimator",
    "Device": "apt_jax.vgpu.scheduler.devices",
    "Link": "apt_jax.vgpu.scheduler.devices",
    "Target": "apt_jax.vgpu.scheduler.devices",
    "find_device": "apt_jax.vgpu.scheduler.devices",
    "parse_target": "apt_jax.vgpu.scheduler.devices",
    "topology_devices": "apt_jax.vgpu.scheduler.devices",
}

__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]  # names of __getattr__

__getattr__, __dir__ = lazy_exports(__name__, _PUBLIC)
