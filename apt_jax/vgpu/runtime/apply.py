"""What the hooks of Virtual Blackwell answer, by the settings that hold."""

from __future__ import annotations

from dataclasses import replace

from apt_jax.core.config import Config
from apt_jax.vgpu.runtime.modes import PROJECTIONS, apply_mode, find_mode
from apt_jax.vgpu.runtime.switch import settings_for


def configure(config: Config) -> Config:
    """The config with the settings that hold in its `vgpu` section, and with what its mode sets.

    So a workdir's config says what a run was, whatever the environment is when it is opened again.
    """
    settings = settings_for(config)
    vgpu = replace(config.vgpu, enabled=settings.active, mode=settings.mode, recipe=settings.recipe)
    config = replace(config, vgpu=vgpu)
    return apply_mode(config) if vgpu.enabled else config


def quant_rules(config: Config) -> list[tuple[str, str]] | None:
    """The mode's rules for quantized matmuls; None where it has none."""
    if not config.vgpu.enabled or not find_mode(config.vgpu.mode).quantizes:
        return None
    return [(PROJECTIONS, config.vgpu.recipe)]
