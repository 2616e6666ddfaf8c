"""Recipes: in which number formats the three matrix products of a layer are computed.

y = x · w going forward; going back, dx = g · wᵀ (dgrad) and dw = xᵀ · g (wgrad), for a gradient g of y. Every
product has formats of its own, and blocks of each lie along the axis that this product contracts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from apt_jax.core.errors import did_you_mean
from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.formats import FP8E4M3, FP8E5M2, MXFP4, MXFP8, NVFP4, Format, Int8, find_format
from apt_jax.vgpu.quant.hadamard import TE_SIGNS, random_signs

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


@dataclass(frozen=True)
class Recipe:
    """Formats of the two operands of each product; None: as they come, in compute dtype.

    Attributes:
      name: for reports.
      forward_x, forward_w: of x [..., K] · w [K, N], both in blocks along K.
      dgrad_g, dgrad_w: of g [..., N] · wᵀ, in blocks along N.
      wgrad_x, wgrad_g: of xᵀ · g, in blocks along the tokens.
      same_weights: dgrad multiplies by the numbers of the forward product, decoded, instead of `dgrad_w`: the exact
        gradient of a product with rounded weights, taken straight through the rounding.
      hadamard: signs of the random Hadamard transform of both operands of wgrad, as many as its block is long; None:
        none.
      stochastic: gradients are rounded at random without bias where a key is in force (`core.noise`), else to nearest.
    """

    name: str
    forward_x: Format | None = None
    forward_w: Format | None = None
    dgrad_g: Format | None = None
    dgrad_w: Format | None = None
    wgrad_x: Format | None = None
    wgrad_g: Format | None = None
    same_weights: bool = False
    hadamard: tuple[int, ...] | None = None
    stochastic: bool = False

    def check(self, inputs: int, outputs: int) -> None:
        """Raises FormatError where blocks do not fill a weight [inputs, outputs]; of tokens nothing is known yet."""
        w = jax.ShapeDtypeStruct((inputs, outputs), jnp.float32)
        rows = 16  # any number of tokens: no product but wgrad has blocks along them
        x, g = (jax.ShapeDtypeStruct((rows, size), jnp.float32) for size in (inputs, outputs))
        dgrad_w = None if self.same_weights else self.dgrad_w
        for format, array, axis in (
            (self.forward_x, x, -1), (self.forward_w, w, -2), (self.dgrad_g, g, -1), (dgrad_w, w, -1),
        ):  # fmt: skip
            if format is not None:
                format.check(array, axis)

    def __str__(self) -> str:
        return self.name


def nvfp4() -> Recipe:
    """NVIDIA's (arXiv 2509.25149): weights in tiles of 16 x 16, so that forward and dgrad multiply by the same numbers;
    Hadamard transform on wgrad only, stochastic rounding on gradients only."""
    rows, tiles = NVFP4(order="te"), NVFP4(order="te", tiles=True)
    return Recipe("nvfp4", rows, tiles, rows, tiles, rows, rows, hadamard=TE_SIGNS, stochastic=True)


def mxfp4() -> Recipe:
    """All operands in MXFP4, gradients stochastically rounded and wgrad transformed (after arXiv 2502.20586, which
    transforms dgrad as well)."""
    rows = MXFP4(scale="rceil")
    return replace(_everywhere("mxfp4", rows), hadamard=random_signs(32, seed=0), stochastic=True)


def mxfp8() -> Recipe:
    """e4m3 everywhere, scales rounded up, to nearest (arXiv 2506.08027)."""
    return _everywhere("mxfp8", MXFP8(scale="rceil"))


def int8() -> Recipe:
    """One scale for each row of the left and each column of the right operand; gradients stochastically rounded."""
    return replace(_everywhere("int8", Int8(scale_dtype="float32")), stochastic=True)


def fp8() -> Recipe:
    """e4m3, and e5m2 for gradients, under one scale for the tensor, to nearest (arXiv 2209.05433); for Hopper."""
    e4m3, e5m2 = FP8E4M3(), FP8E5M2()
    return Recipe("fp8", e4m3, e4m3, e5m2, e4m3, e4m3, e5m2)


def nvfp4_weights() -> Recipe:
    """Weights alone, in tiles: training that expects to be served in NVFP4."""
    tiles = NVFP4(order="te", tiles=True)
    return Recipe("nvfp4_weights", forward_w=tiles, dgrad_w=tiles)


def weights_only(name: str, format: Format) -> Recipe:
    """Products in compute dtype with rounded weights."""
    return Recipe(name, forward_w=format, dgrad_w=format, same_weights=True)


def _everywhere(name: str, format: Format) -> Recipe:
    return Recipe(name, format, format, format, format, format, format)


RECIPES: dict[str, Callable[[], Recipe]] = {
    make.__name__: make for make in (fp8, int8, mxfp4, mxfp8, nvfp4, nvfp4_weights)
}


def find_recipe(wanted: Any, plugins: Plugins | None = None, key: str = "") -> Recipe:
    """A recipe as it is, one of `RECIPES` by name, or weights alone in a format: given, or by its registered name.

    Args:
      key: of the config, where the name is from; begins the error.

    Raises:
      FormatError: there is neither; the line lists all.
    """
    if isinstance(wanted, Recipe):
        return wanted
    if isinstance(wanted, Format):
        return weights_only(str(wanted), wanted)
    if isinstance(wanted, str) and wanted in RECIPES:
        return RECIPES[wanted]()
    formats = () if plugins is None else tuple(plugins.registry("quant_formats"))
    if plugins is not None and wanted in formats:
        return weights_only(wanted, find_format(wanted, plugins))
    names = (*RECIPES, *(name for name in formats if name not in RECIPES))
    start = f"{key}: " if key else ""
    raise FormatError(
        f"{start}unknown quantisation '{wanted}'{did_you_mean(str(wanted), names)}; recipes: {', '.join(RECIPES)}; "
        f"number formats, for weights alone: {', '.join(sorted(set(formats) - set(RECIPES))) or 'none'}"
    )
