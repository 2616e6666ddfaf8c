"""Virtual Blackwell for a model that is built already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flax import nnx

from apt_jax.core.config import default_config, validate
from apt_jax.core.errors import ConfigError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.runtime.apply import adapt
from apt_jax.vgpu.runtime.modes import apply_mode, find_mode
from apt_jax.vgpu.runtime.switch import get_config


@dataclass(frozen=True)
class Adapted:
    """What was done to a model.

    Attributes:
      model: the model given, changed in place.
      mode: whose changes were made.
      changes: a line each.
      left: what the mode does that a built model cannot take, a line each.
    """

    model: nnx.Module
    mode: str
    changes: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"Virtual Blackwell, mode {self.mode}:", *(f"  {line}" for line in self.changes or ("no change",))]
        return "\n".join([*lines, *(f"  left: {line}" for line in self.left)])


class VirtualBlackwellAdapter:
    """Changes models as one mode says, whether Virtual Blackwell is enabled or not.

    Args:
      mode: full, speed, memory or balanced; None: what `get_config` says.
      recipe: of quantized matmuls; None: what `get_config` says.
      residuals: number format of the activations kept for the backward pass, or "none"; None: what `get_config` says.
    """

    def __init__(self, mode: str | None = None, recipe: str | None = None, residuals: str | None = None):
        settings = get_config()
        self.mode, self.recipe = mode or settings.mode, recipe or settings.recipe
        self.residuals = residuals or settings.residuals
        find_mode(self.mode, "VirtualBlackwellAdapter: mode")

    def adapt(self, model: Any) -> Adapted:
        """Changes the model, an NNX module, in place.

        Raises:
          ConfigError: it is no NNX module.
        """
        if not isinstance(model, nnx.Module):
            raise ConfigError(f"enable_vb_optimization: {type(model).__name__} is no flax.nnx.Module")
        wanted = default_config()
        vgpu = {"enabled": True, "mode": self.mode, "recipe": self.recipe, "residuals": self.residuals}
        wanted.update_from_flattened_dict({f"vgpu.{key}": value for key, value in vgpu.items()})
        config = apply_mode(validate(wanted))
        changes = adapt(model, config, load_plugins(enabled=(), disabled=("*",), plugins_dir=None))
        values = dict(find_mode(self.mode).values)
        if hasattr(model, "remat_policy"):
            values.pop("model.remat_policy", None)
        left = tuple(f"{key}={value}: set it in the config of the run" for key, value in values.items())
        return Adapted(model, self.mode, tuple(changes), left)


def enable_vb_optimization(model: nnx.Module, mode: str | None = None, **settings: Any) -> nnx.Module:
    """The model, changed in place as the mode says; prints what was done unless `verbose` is off.

        from apt_jax.vgpu.runtime import enable_vb_optimization
        model = enable_vb_optimization(APTModel(hidden_size=256), mode="memory")

    Args:
      model: any NNX module.
      mode, **settings: as `VirtualBlackwellAdapter`.

    Raises:
      ConfigError: an unknown mode, or no NNX module.
    """
    done = VirtualBlackwellAdapter(mode, **settings).adapt(model)
    if get_config().verbose:
        print(done)
    return model
