"""Which products a device multiplies as they are, and which are emulated; decided for the target, not for the host."""

from __future__ import annotations

from typing import Literal

from apt_jax.core.logical import target_capability, target_platform
from apt_jax.vgpu.quant.dot.recipe import Recipe
from apt_jax.vgpu.quant.formats import FP8E4M3, FP8E5M2, MXFP8, NVFP4, Format

Way = Literal["emulated", "block_scaled", "fp8"]
Capability = tuple[int, int] | None

_ENGINES = {"block_scaled": "cuDNN's block-scaled products", "fp8": "FP8 products"}


def way_of(left: Format | None, right: Format | None, capability: Capability) -> Way:
    """How a product of two operands runs on a GPU of this CUDA compute capability; None: no NVIDIA GPU.

    Emulation multiplies the same numbers, exact in bfloat16 or float32, and adds up in float32 as well: results
    differ by the order of the sum, and, on Hopper, by the fewer bits in which its FP8 units add.
    """
    if capability is None or left is None or right is None:
        return "emulated"
    for kind in (NVFP4, MXFP8):
        # Other Blackwells (sm_120) have such units as well; nothing has been compiled for them here.
        if isinstance(left, kind) and isinstance(right, kind) and capability[0] == 10:
            return "block_scaled"
    floats = isinstance(left, FP8E4M3 | FP8E5M2) and isinstance(right, FP8E4M3 | FP8E5M2)
    both_e5m2 = isinstance(left, FP8E5M2) and isinstance(right, FP8E5M2)  # which no unit multiplies
    return "fp8" if floats and not both_e5m2 and capability >= (8, 9) else "emulated"


def products(recipe: Recipe) -> dict[str, tuple[Format | None, Format | None]]:
    """The operands of each product that has a quantised one."""
    pairs = {
        "forward": (recipe.forward_x, recipe.forward_w),
        "dgrad": (recipe.dgrad_g, recipe.dgrad_w),
        "wgrad": (recipe.wgrad_x, recipe.wgrad_g),
    }
    return {role: pair for role, pair in pairs.items() if pair != (None, None)}


def explain(recipe: Recipe, platform: str | None = None, capability: Capability = None) -> str:
    """One line: `nvfp4: emulated; sm_90 has no FP4 units`.

    Args:
      platform: jax's name of the device kind; None: platform and capability of the target in force.
      capability: (9, 0) for a Hopper GPU.
    """
    if platform is None:
        platform, capability = target_platform(), target_capability()
    where = f"sm_{capability[0]}{capability[1]}" if capability else platform
    ways = {role: way_of(*pair, capability) for role, pair in products(recipe).items()}
    native = [role for role, way in ways.items() if way != "emulated"]
    if native:
        engine = " and ".join(sorted({_ENGINES[ways[role]] for role in native}))
        roles = "" if len(native) == len(ways) else f" for {', '.join(native)}, the rest emulated"
        return f"{recipe}: native on {where}, {engine}{roles}"
    return f"{recipe}: emulated; {_why_not(recipe, where, capability)}"


def _why_not(recipe: Recipe, where: str, capability: Capability) -> str:
    pairs = products(recipe).values()
    if any(None in pair for pair in pairs):
        return "one operand is not quantised, so products are of decoded numbers"
    formats = [format for pair in pairs for format in pair if format is not None]
    if any(format.name.startswith("int") for format in formats):
        return "integer products are not used"
    if capability is not None and capability[0] == 10:
        return f"XLA has no product of {formats[0].name} operands"
    if any(format.element.bits == 4 for format in formats):
        return f"{where} has no FP4 units"
    return f"{where} has no {'FP8' if capability is None or capability < (8, 9) else 'block-scaled FP8'} units"
