"""What this package registers; names only, so that listing them imports no jax."""

from __future__ import annotations

from apt_jax import hookimpl

_DEVICES = "apt_jax.vgpu.scheduler.devices"
_NVIDIA = ("a100", "b200", "h100", "h200", "rtx3070", "rtx3090", "rtx4090")
_TPU = ("v5e", "v5p", "v6e")


@hookimpl
def apt_devices() -> dict[str, str]:
    return {
        "cpu": f"{_DEVICES}.cpu:cpu",
        **{name: f"{_DEVICES}.nvidia:{name}" for name in _NVIDIA},
        **{name: f"{_DEVICES}.tpu:{name}" for name in _TPU},
    }
