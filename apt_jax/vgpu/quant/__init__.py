"""Numbers in few bits: formats, the arrays that hold them, rounding and rotation; no model knowledge."""

from apt_jax.vgpu.quant.formats import Encoded, Format, FormatError, find_format
from apt_jax.vgpu.quant.hadamard import TE_SIGNS, hadamard_matrix, random_signs, rotate
from apt_jax.vgpu.quant.qtensor import QTensor

__all__ = [
    "TE_SIGNS",
    "Encoded",
    "Format",
    "FormatError",
    "QTensor",
    "find_format",
    "hadamard_matrix",
    "random_signs",
    "rotate",
]
