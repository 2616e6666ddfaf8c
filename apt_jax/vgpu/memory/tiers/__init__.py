"""Levels of memory (device, pinned host, disk) between which values move as they are used.

stack = create_vgpu_stack([{"device": "gpu", "capacity_mb": 6400}, {"device": "ssd", "capacity_mb": 32000}])
keys = stream_layers(params_LX, stack)
y = forward_streamed(apply_layer, x, LayerStreamer(stack, keys))
stack.print_stats()
"""

from __future__ import annotations

from apt_jax.core.lazy import lazy_exports

_HERE = "apt_jax.vgpu.memory.tiers"
# Name -> module, imported when the name is first used.
_PUBLIC = {
    "FarthestInPlan": f"{_HERE}.victims",
    "LayerPrograms": f"{_HERE}.training",
    "LayerStreamer": f"{_HERE}.streamer",
    "LeastRecentlyUsed": f"{_HERE}.victims",
    "Level": f"{_HERE}.tier",
    "StackStatistics": f"{_HERE}.statistics",
    "Tier": f"{_HERE}.tier",
    "TierError": f"{_HERE}.tier",
    "TieredTable": f"{_HERE}.table",
    "VGPUStack": f"{_HERE}.stack",
    "create_vgpu_stack": f"{_HERE}.create",
    "forward_streamed": f"{_HERE}.layers",
    "init_optimizer": f"{_HERE}.training",
    "layer_programs": f"{_HERE}.training",
    "render": f"{_HERE}.statistics",
    "stream_layers": f"{_HERE}.layers",
    "train_streamed": f"{_HERE}.training",
}

__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]  # names of __getattr__

__getattr__, __dir__ = lazy_exports(__name__, _PUBLIC)
