"""Puts rules for residuals into a model: any Flax NNX module, by its public attributes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from flax import nnx

from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.memory.residuals.codec import find_codec
from apt_jax.vgpu.memory.residuals.policy import Residuals
from apt_jax.vgpu.quant.rules import compile_rule

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


def install(model: nnx.Module, rules: Sequence[Any], plugins: Plugins | None = None) -> list[str]:
    """Sets, in place, the attribute `residuals` of every module that has one, unless it is set already.

    Whoever runs such a module applies it to the function that autodiff sees, as `jax.checkpoint` is applied:
    `f = module.residuals(f)`, for `f(x, *rest)` with the activations x; `model.layers.stack.run_layers` does.

    Args:
      model: built, or abstract under `nnx.eval_shape`.
      rules: (pattern, codec), see `apt_residual_rules`; a codec is one, a number format, or its name.
      plugins: where number formats are looked up.

    Returns:
      A line for each module.

    Raises:
      ConfigError: a rule is no such pair, or no module has such an attribute.
      FormatError: a codec that is none.
    """
    compiled = [compile_rule(rule, partial(find_codec, plugins=plugins), "residual rule") for rule in rules]
    pairs = tuple((pattern.pattern, codec) for pattern, codec in compiled)
    found = list(_places(model))
    if not found:
        raise ConfigError(
            f"vgpu.residuals: no module of {type(model).__name__} has an attribute `residuals`; let its layers be run "
            "by apt_jax.model.layers.stack.run_layers and set `residuals = None` in them, or use residuals=none"
        )
    changes = []
    for path, module in found:
        if module.residuals is None:
            module.residuals = Residuals(path, pairs)
            changes.append(f"residuals of {path}: {', '.join(f'{name} {codec}' for name, codec in pairs)}")
    return changes


def installed(model: nnx.Module) -> tuple[Residuals, ...]:
    """What `install`, or anyone else, has set."""
    return tuple(module.residuals for _, module in _places(model) if isinstance(module.residuals, Residuals))


def _places(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        if hasattr(module, "residuals"):
            yield "/".join(map(str, path)) or type(module).__name__, module
