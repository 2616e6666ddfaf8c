"""Number formats: found by name through the hook `apt_quant_formats`, or built directly.

fmt = find_format("nvfp4", plugins, order="te")        # or NVFP4(order="te")
q = fmt.quantize(w_KN, axis=-2)                        # packed codes and scales, a pytree
w_KN = q.dequantize()
x_TK = fmt.fake(x_TK, axis=-1, key=key)                # quantise and decode, nothing stored
"""

from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.formats.elements import (
    E2M1,
    E4M3,
    E5M2,
    INT4,
    INT8,
    UINT4,
    Element,
    Float,
    Integer,
    Table,
)
from apt_jax.vgpu.quant.formats.float8 import FP8E4M3, FP8E5M2
from apt_jax.vgpu.quant.formats.format import Encoded, Format, find_format
from apt_jax.vgpu.quant.formats.integer import Int4, Int8
from apt_jax.vgpu.quant.formats.mx import MXFP4, MXFP8
from apt_jax.vgpu.quant.formats.nf4 import NF4
from apt_jax.vgpu.quant.formats.nvfp4 import NVFP4
from apt_jax.vgpu.quant.formats.uint4 import UInt4

__all__ = [
    "E2M1",
    "E4M3",
    "E5M2",
    "FP8E4M3",
    "FP8E5M2",
    "INT4",
    "INT8",
    "MXFP4",
    "MXFP8",
    "NF4",
    "NVFP4",
    "UINT4",
    "Element",
    "Encoded",
    "Float",
    "Format",
    "FormatError",
    "Int4",
    "Int8",
    "Integer",
    "Table",
    "UInt4",
    "find_format",
]
