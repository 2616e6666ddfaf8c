"""Quantised matrix products for training: recipes, the callable that layers multiply with, where it is put, coverage.

    found = install(model, [("layers/mlp/.*", "nvfp4"), ("layers/attn/.*", "mxfp8")])
    print(found.text())                                     # what runs natively, what was skipped and why
    measure(step.trace(state, batch).jaxpr).require(0.8)    # counted in the traced step

In a run, rules come from plugins' `apt_quant_rules`.
"""

from apt_jax.vgpu.quant.dot.coverage import Coverage, measure
from apt_jax.vgpu.quant.dot.dot import QuantizedDot
from apt_jax.vgpu.quant.dot.einsum import QuantizedEinsum
from apt_jax.vgpu.quant.dot.hardware import explain
from apt_jax.vgpu.quant.dot.install import Installation, install
from apt_jax.vgpu.quant.dot.recipe import RECIPES, Recipe, find_recipe


def quantized_dot(recipe: Recipe | str, name: str = "") -> QuantizedDot:
    """A replacement for `jax.lax.dot_general` in one layer; `name` tells layers apart, see `QuantizedDot`."""
    return QuantizedDot(find_recipe(recipe), name)


__all__ = [
    "RECIPES",
    "Coverage",
    "Installation",
    "QuantizedDot",
    "QuantizedEinsum",
    "Recipe",
    "explain",
    "find_recipe",
    "install",
    "measure",
    "quantized_dot",
]
