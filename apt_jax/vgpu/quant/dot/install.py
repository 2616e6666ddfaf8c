"""Puts quantised products into the layers of a model that rules name: any Flax NNX module, by its public attributes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flax import nnx

from apt_jax.vgpu.quant.dot.dot import QuantizedDot
from apt_jax.vgpu.quant.dot.einsum import QuantizedEinsum
from apt_jax.vgpu.quant.dot.hardware import explain
from apt_jax.vgpu.quant.dot.recipe import Recipe, find_recipe
from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.rules import assign

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


@dataclass(frozen=True)
class Installation:
    """What `install` did.

    Attributes:
      installed: (path, recipe) of each layer that is quantised.
      skipped: (path, reason) of each layer that a rule names and that could not be.
      kept: paths of layers that rules leave as they are, or that no rule names.
    """

    installed: tuple[tuple[str, Recipe], ...]
    skipped: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]

    def text(self) -> str:
        """Lines to print: what runs how on the target in force, what was skipped and why."""
        lines = []
        for recipe in dict.fromkeys(recipe for _, recipe in self.installed):
            paths = [path for path, its in self.installed if its == recipe]
            lines.append(f"{explain(recipe)} ({', '.join(paths)})")
        return "\n".join([*lines, *(f"{path}: not quantised: {reason}" for path, reason in self.skipped)])


def install(model: nnx.Module, rules: Sequence[Any], plugins: Plugins | None = None) -> Installation:
    """Replaces, in place, `dot_general` or `einsum_op` of every module whose path a rule matches.

    Stacked (scanned) and rematerialised layers need nothing more: they are one module with one attribute.

    Args:
      model: built, or abstract under `nnx.eval_shape`.
      rules: (pattern, recipe), see `apt_jax.vgpu.quant.rules`; a recipe is a `Recipe` or a name, see `find_recipe`.
      plugins: where number formats are looked up; None: the named recipes alone.

    Raises:
      ConfigError: a rule is no such pair, or is used by no layer.
      FormatError: a name that is neither a recipe nor a format.
    """
    layers = dict(_layers(model))
    installed: list[tuple[str, Recipe]] = []
    skipped: list[tuple[str, str]] = []
    kept: list[str] = []
    for path, recipe in assign(layers, rules, lambda wanted: find_recipe(wanted, plugins)).items():
        module = layers[path]
        if recipe is None:
            kept.append(path)
        elif reason := _obstacle(module, recipe):
            skipped.append((path, reason))
        else:
            dot = QuantizedDot(recipe, path)
            if hasattr(module, "einsum_op"):
                module.einsum_op = QuantizedEinsum(dot)
            else:
                module.dot_general = dot
            installed.append((path, recipe))
    return Installation(tuple(installed), tuple(skipped), tuple(kept))


def _layers(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        if hasattr(module, "dot_general") or hasattr(module, "einsum_op"):
            yield "/".join(map(str, path)), module


def _obstacle(module: Any, recipe: Recipe) -> str | None:
    """Why a layer cannot be quantised, or None."""
    if getattr(module, "dot_general_cls", None) is not None:
        return "its dot_general_cls would win over dot_general"
    sizes = _sizes(module)
    if sizes is None:
        return None
    try:
        recipe.check(*sizes)
    except FormatError as error:
        return str(error)
    return None


def _sizes(module: Any) -> tuple[int, int] | None:
    """(inputs, outputs) that a weight contracts and gives; None: only known when it is traced."""
    if hasattr(module, "einsum_op"):
        return None
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if inputs is not None and outputs is not None:
        return _product(inputs), _product(outputs)
    kernel = getattr(module, "kernel", None)
    return None if kernel is None else kernel.shape[-2:]  # behind the axis of stacked layers


def _product(size: int | tuple[int, ...]) -> int:
    return math.prod(size) if isinstance(size, tuple) else size
