"""Which settings hold: arguments before the environment before `.vbrc` before the config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from apt_jax.core.config.schema import VgpuConfig
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.vgpu.runtime.modes import find_mode
from apt_jax.vgpu.runtime.offload import OFFLOADS
from apt_jax.vgpu.runtime.vbrc import find_vbrc, read_vbrc

_ENVIRONMENT = {"ENABLE_VIRTUAL_BLACKWELL": "enabled", "VB_MODE": "mode", "VB_AUTO_PATCH": "auto_patch"}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Settings:
    """Settings of Virtual Blackwell.

    Attributes:
      enabled: models that the platform builds are transformed, and configs changed as the mode says.
      mode: see `MODES`.
      recipe: of quantized matmuls, in the modes that quantize.
      offload: what lies in host memory, see `runtime.offload`.
      residuals: number format of the activations kept for the backward pass; "none": as they were computed.
      auto_patch: false: only what is given to `enable_vb_optimization` is transformed.
      auto_estimate: with `verbose`: a run begins with the closed form's memory.
      verbose: `enable` says what it did.
      levels: memory levels of `get_stack`, see `create_vgpu_stack`.
      origins: setting -> where its value is from, for those that are not the default.
    """

    enabled: bool = False
    mode: str = "balanced"
    recipe: str = "nvfp4"
    offload: str = "auto"
    residuals: str = "none"
    auto_patch: bool = True
    auto_estimate: bool = True
    verbose: bool = True
    levels: tuple[Mapping[str, Any], ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def active(self) -> bool:
        """What the platform builds is transformed."""
        return self.enabled and self.auto_patch


NAMES = tuple(f.name for f in fields(Settings) if f.name != "origins")


def resolve(config: VgpuConfig | None = None, arguments: Mapping[str, Any] | None = None) -> Settings:
    """The settings that hold now.

    Args:
      config: the config's section; lowest precedence.
      arguments: of `enable`; highest.

    Raises:
      ConfigError: a value of the environment or of `.vbrc` that is not allowed.
    """
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    path = find_vbrc()
    sources: list[tuple[str, Mapping[str, Any]]] = [
        ("config", {} if config is None else vars(config)),
        (str(path), {} if path is None else read_vbrc(path)),
        ("environment", _environment()),
        ("arguments", arguments or {}),
    ]
    for origin, values in sources:
        for name in values:
            chosen[name], origins[name] = values[name], origin
    settings = replace(Settings(**chosen), origins=origins)
    find_mode(settings.mode, f"{origins.get('mode', 'config')}: mode")
    if settings.offload not in OFFLOADS:
        raise ConfigError(
            f"{origins.get('offload', 'config')}: offload: {unknown_name('choice', settings.offload, OFFLOADS)}"
        )
    return settings


def _environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, name in _ENVIRONMENT.items():
        text = os.environ.get(variable, "").strip()
        if not text:
            continue
        if name == "mode":
            find_mode(text.lower(), variable)
            found[name] = text.lower()
        elif text.lower() in (*_TRUE, *_FALSE):
            found[name] = text.lower() in _TRUE
        else:
            raise ConfigError(f"{variable}={text}: give 1 or 0")
    return found
