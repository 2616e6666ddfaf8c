"""What this package registers; names only, so that listing them imports no jax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apt_jax import hookimpl

if TYPE_CHECKING:
    from apt_jax.core.config import Config
    from apt_jax.core.hookspecs import Run
    from apt_jax.core.registry import Plugins

_DEVICES = "apt_jax.vgpu.scheduler.devices"
_TIERS = "apt_jax.vgpu.memory.tiers"
_NVIDIA = ("a100", "b200", "h100", "h200", "rtx3070", "rtx3090", "rtx4090")
_TPU = ("v5e", "v5p", "v6e")
_FORMATS = "apt_jax.vgpu.quant.formats"
_STORED = "apt_jax.vgpu.quant.stored"


@hookimpl
def apt_devices() -> dict[str, str]:
    return {
        "cpu": f"{_DEVICES}.cpu:cpu",
        **{name: f"{_DEVICES}.nvidia:{name}" for name in _NVIDIA},
        **{name: f"{_DEVICES}.tpu:{name}" for name in _TPU},
    }


@hookimpl
def apt_optimizers() -> dict[str, str]:
    optimizers = "apt_jax.vgpu.memory.states.optimizers"
    return {name: f"{optimizers}:{name}" for name in ("adamw8bit", "adamw_bf16")}


@hookimpl
def apt_memory_tiers() -> dict[str, str]:
    return {
        "device": f"{_TIERS}.memory_spaces:Device",
        "pinned_host": f"{_TIERS}.memory_spaces:PinnedHost",
        "disk": f"{_TIERS}.disk:Disk",
    }


@hookimpl
def apt_quant_formats() -> dict[str, str]:
    return {
        "fp8_e4m3": f"{_FORMATS}.float8:FP8E4M3",
        "fp8_e5m2": f"{_FORMATS}.float8:FP8E5M2",
        "int4": f"{_FORMATS}.integer:Int4",
        "int4_g128": f"{_FORMATS}.integer:int4_g128",
        "int4_g32": f"{_FORMATS}.integer:int4_g32",
        "int8": f"{_FORMATS}.integer:Int8",
        "int8_g128": f"{_FORMATS}.integer:int8_g128",
        "mxfp4": f"{_FORMATS}.mx:MXFP4",
        "mxfp4_rceil": f"{_FORMATS}.mx:mxfp4_rceil",
        "mxfp8": f"{_FORMATS}.mx:MXFP8",
        "mxfp8_rceil": f"{_FORMATS}.mx:mxfp8_rceil",
        "nf4": f"{_FORMATS}.nf4:NF4",
        "nvfp4": f"{_FORMATS}.nvfp4:NVFP4",
        "nvfp4_four_over_six": f"{_FORMATS}.nvfp4:nvfp4_four_over_six",
        "nvfp4_one_level": f"{_FORMATS}.nvfp4:nvfp4_one_level",
        "nvfp4_tiles": f"{_FORMATS}.nvfp4:nvfp4_tiles",
        "uint4": f"{_FORMATS}.uint4:UInt4",
    }


@hookimpl
def apt_quant_methods() -> dict[str, str]:
    return {
        "hqq": f"{_STORED}.hqq:half_quadratic",
        "mse": f"{_STORED}.clip:clipped",
        "rtn": f"{_STORED}.methods:round_to_nearest",
    }


@hookimpl
def apt_configure(config: Config) -> Config:
    from apt_jax.vgpu.runtime.apply import configure

    return configure(config)


@hookimpl
def apt_quant_rules(config: Config) -> list[tuple[str, str]] | None:
    from apt_jax.vgpu.runtime.apply import quant_rules

    return quant_rules(config)


@hookimpl
def apt_residual_rules(config: Config) -> list[tuple[str, str]] | None:
    from apt_jax.vgpu.runtime.apply import residual_rules

    return residual_rules(config)


@hookimpl(trylast=True)  # after plugins that add layers
def apt_transform_model(model: Any, config: Config, plugins: Plugins) -> None:
    if config.vgpu.enabled:
        from apt_jax.vgpu.runtime.apply import adapt

        adapt(model, config, plugins)


@hookimpl
def apt_memory_kinds(config: Config) -> dict[str, str] | None:
    from apt_jax.vgpu.runtime.offload import memory_kinds

    return memory_kinds(config)


@hookimpl
def apt_train_begin(run: Run) -> None:
    if run.config.vgpu.enabled:
        from apt_jax.vgpu.runtime.begin import print_estimate

        print_estimate(run)
