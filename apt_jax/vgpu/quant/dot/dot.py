"""`jax.lax.dot_general` for layers whose products are quantised; put into a module's `dot_general`."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.core import noise
from apt_jax.core.logical import target_capability
from apt_jax.vgpu.quant.dot.hardware import Capability, way_of
from apt_jax.vgpu.quant.dot.multiply import Operand, multiply
from apt_jax.vgpu.quant.dot.recipe import Recipe
from apt_jax.vgpu.quant.errors import FormatError, describe
from apt_jax.vgpu.quant.formats import Format
from apt_jax.vgpu.quant.hadamard import rotate

SCOPE = "quantized_dot"  # in the name stack of every product made here: "quantized_dot.nvfp4.dgrad"
OVERHEAD = "quantized_dot.overhead"  # products that the layer itself does not ask for


@dataclass(frozen=True)
class QuantizedDot:
    """A layer's products by `recipe`, forward and backward; hashable, so that it may be static in a graph.

    Attributes:
      recipe: formats.
      name: of the layer; stochastic rounding draws independently for each name, see `core.noise`. Two calls under one
        name in one layer and step draw alike.
    """

    recipe: Recipe
    name: str = ""

    @property
    def stochastic(self) -> bool:
        """Whether gradients draw random numbers."""
        return self.recipe.stochastic

    def __call__(
        self,
        x: jax.Array,
        w: jax.Array,
        dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        **kwargs: Any,
    ) -> jax.Array:
        """As `jax.lax.dot_general`, for x [..., K...] and w [K..., N...] with nothing batched.

        `precision` has no meaning here; sums are float32, rounded once to the dtype of the result.

        Raises:
          FormatError: another product, or blocks that do not fill an axis. That of the tokens is met when the
            gradient is traced.
        """
        (x_axes, w_axes), batched = dimension_numbers
        count = len(x_axes)
        plain = tuple(x_axes) == tuple(range(x.ndim - count, x.ndim)) and tuple(w_axes) == tuple(range(count))
        if not plain or any(map(len, batched)) or count == 0:
            raise FormatError(
                f"quantised layer '{self.name}': {describe(x)} · {describe(w)} contracts {tuple(x_axes)} with "
                f"{tuple(w_axes)}; only x [..., K] · w [K, N] is quantised, so leave this layer out of the rules"
            )
        if unknown := [name for name, value in kwargs.items() if value is not None]:
            raise FormatError(f"quantised layer '{self.name}': dot_general got {unknown[0]}, which is not supported")
        inputs, outputs = w.shape[:count], w.shape[count:]
        out_dtype = jnp.dtype(preferred_element_type or jnp.result_type(x, w))
        key = noise.key_for(self.name) if self.stochastic else None
        products = _Products(self.recipe, self.name, target_capability(), out_dtype)
        flat = x.reshape(*x.shape[: x.ndim - count], math.prod(inputs)) if count > 1 else x
        y: Any = _dot(products, flat, w.reshape(math.prod(inputs), -1) if w.ndim > 2 else w, key)
        return y.reshape(*y.shape[:-1], *outputs) if len(outputs) != 1 else y


@dataclass(frozen=True)
class _Products:
    """All that is static in the three products."""

    recipe: Recipe
    name: str
    capability: Capability
    out_dtype: Any

    def __call__(self, role: str, left: Operand, right: Operand) -> jax.Array:
        if left.format is None and right.format is None and not (role == "dgrad" and self.recipe.same_weights):
            return multiply(left, right, "emulated")
        with jax.named_scope(f"{SCOPE}.{self.recipe.name}.{role}"):
            return multiply(left, right, way_of(left.format, right.format, self.capability))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(products: _Products, x: jax.Array, w: jax.Array, key: jax.Array | None) -> jax.Array:
    """x [..., K] · w [K, N] -> [..., N]. The key is an argument: a traced value in a closure would leak."""
    return _forward(products, x, w, key)[0]


def _forward(products: _Products, x: jax.Array, w: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
    recipe = products.recipe
    y = products("forward", Operand(x, -1, recipe.forward_x), Operand(w, -2, recipe.forward_w))
    return y.astype(products.out_dtype), (x, w, key)


def _backward(products: _Products, residuals: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, w, key = residuals
    recipe, g = products.recipe, g.astype(x.dtype)
    dgrad_key, wgrad_key = (None, None) if key is None else jax.random.split(key)
    if recipe.same_weights and recipe.dgrad_w is not None:
        weights = Operand(recipe.dgrad_w.fake(w.astype(jnp.float32), axis=-2), -1, None)
    else:
        weights = Operand(w, -1, recipe.dgrad_w)
    dx = products("dgrad", Operand(g, -1, recipe.dgrad_g, dgrad_key), weights)
    x_rows, g_rows = _tokens(products, x, g)
    dw = products("wgrad", Operand(x_rows, -2, recipe.wgrad_x), Operand(g_rows, -2, recipe.wgrad_g, wgrad_key))
    return dx.astype(x.dtype), dw.astype(w.dtype), None


_dot.defvjp(_forward, _backward)


def _tokens(products: _Products, x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and g with an axis -2 of tokens that blocks fill, rotated where the recipe says so."""
    recipe = products.recipe
    formats: list[Format] = [each for each in (recipe.wgrad_x, recipe.wgrad_g) if each is not None]
    if not formats:
        return x, g
    x, g = (array.reshape(1, -1) if array.ndim == 1 else array for array in (x, g))
    blocks = [each.block for each in formats] + [len(recipe.hadamard or (1,))]
    # Blocks of a row are blocks of all rows: then axes that are cut over devices need not be merged.
    if None in blocks or any(x.shape[-2] % block for block in blocks if block):
        x, g = (array.reshape(-1, array.shape[-1]) for array in (x, g))
    unfilled = next((block for block in blocks if block and x.shape[-2] % block), None)
    if unfilled:
        raise FormatError(
            f"quantised layer '{products.name}': its weight gradient contracts {x.shape[-2]:,} tokens, no multiple of "
            f"{unfilled}, the block of {recipe}; change training.batch_size (per microbatch) or data.sequence_length"
        )
    if recipe.hadamard:
        with jax.named_scope(OVERHEAD):
            x, g = (rotate(array, axis=-2, block=len(recipe.hadamard), signs=recipe.hadamard) for array in (x, g))
    return x, g
