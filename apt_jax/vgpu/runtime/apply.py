"""What the hooks of Virtual Blackwell answer, by the settings that hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apt_jax.core.config import Config
from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.runtime.modes import apply_mode, find_mode
from apt_jax.vgpu.runtime.switch import settings_for

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


def configure(config: Config) -> Config:
    """The config with the settings that hold in its `vgpu` section, and with what its mode sets.

    So a workdir's config says what a run was, whatever the environment is when it is opened again.
    """
    settings = settings_for(config)
    if not settings.active and config.vgpu.offload not in ("auto", "none"):
        raise ConfigError(
            f"vgpu.offload: {config.vgpu.offload} needs Virtual Blackwell, which is off; set vgpu.enabled=true"
        )
    vgpu = replace(
        config.vgpu,
        enabled=settings.active,
        mode=settings.mode,
        recipe=settings.recipe,
        offload=settings.offload,
        residuals=settings.residuals,
    )
    config = replace(config, vgpu=vgpu)
    return apply_mode(config) if vgpu.enabled else config


def quant_rules(config: Config) -> list[tuple[str, str]] | None:
    """The mode's rules for quantized matmuls; None where it has none."""
    vgpu = config.vgpu
    if not vgpu.enabled or vgpu.recipe == "none" or not find_mode(vgpu.mode).quantizes:
        return None
    from apt_jax.vgpu.quant.rules import PROJECTIONS

    return [(PROJECTIONS, vgpu.recipe)]


def residual_rules(config: Config) -> list[tuple[str, str]] | None:
    """The rule that `vgpu.residuals` stands for; None where there is none."""
    if not config.vgpu.enabled or config.vgpu.residuals == "none":
        return None
    return [(".*", config.vgpu.residuals)]


def adapt(model: Any, config: Config, plugins: Plugins) -> list[str]:
    """Changes a model, in place, to what a configured config says; done again, it changes nothing more.

    Layers that are quantized already stay so, in whatever recipe. `model.quantization` tells what was installed.

    Args:
      model: an NNX module, built, or abstract under `nnx.eval_shape`.
      config: with its mode applied.
      plugins: whose rules and number formats hold.

    Returns:
      A line for each change.

    Raises:
      ConfigError: a rule that no layer uses, an unknown recipe or number format, or residuals of a model whose
        layers have no place for that.
    """
    changes: list[str] = []
    policy = config.model.remat_policy
    if policy != "none" and getattr(model, "remat_policy", None) == "none":  # one that was chosen stays
        model.remat_policy = policy
        changes.append(f"remat_policy: none -> {policy}")
    rules = plugins.transform("apt_quant_rules", config=config)
    if rules and getattr(model, "quantization", None) is None:
        from apt_jax.vgpu.quant.dot import install

        model.quantization = install(model, rules, plugins)
        changes += model.quantization.text().splitlines()
    kept = plugins.transform("apt_residual_rules", config=config)
    if kept:
        from apt_jax.vgpu.memory.residuals import install as install_residuals

        changes += install_residuals(model, kept, plugins)
    return changes
