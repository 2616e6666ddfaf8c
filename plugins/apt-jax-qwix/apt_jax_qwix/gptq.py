"""GPTQ: columns rounded one after another, each error made good by those that follow (arXiv:2210.17323)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from qwix.contrib import gptq_core

from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.formats import Encoded, Format, Int4, Int8
from apt_jax.vgpu.quant.stored import CalibratedMethod
from apt_jax_qwix.how import how_to_quantize

BLOCK = 128  # columns between two updates of all that follow
# Not compiled as a whole, every width is compiled step by step, for the better part of a minute: so few widths.
LEAST_ROWS = 256


class GPTQ(CalibratedMethod):
    """Minimises |X(W - Ŵ)|² for the inputs X, of which it needs H = XᵀX alone.

    Scales are those of qwix: the largest absolute value of a block over 7.5 (127.5 for int8), taken when the block's
    turn comes. They are stored in the format's dtype, rounded after the codes were found.
    """

    def observe(self, x_TK: jax.Array) -> jax.Array:
        """H_KK, summed."""
        return jnp.matmul(x_TK.T, x_TK, precision="highest")

    def check(self, format: Format) -> None:
        if not isinstance(format, Int4 | Int8) or format.rule == "q4_0":
            raise FormatError(f"{format}: method gptq serves int4 and int8; use awq, mse or rtn with this format")

    def quantize(self, format: Format, w_KN: jax.Array, sums: Any, tokens: int) -> QTensor:
        self.check(format)
        outputs = w_KN.shape[-1]
        rows = max(LEAST_ROWS, 1 << (outputs - 1).bit_length())
        w_NK = jnp.pad(w_KN.astype(jnp.float32).T, ((0, rows - outputs), (0, 0)))
        # A block that is not cut gets its scale from weights in which all errors before it are made good.
        found, losses = gptq_core.quantize_weight(
            w_NK, sums / tokens, how_to_quantize(format), blocksize=format.block or BLOCK
        )
        if not jnp.isfinite(losses).all():
            raise FormatError(
                f"method gptq finds no finite answer from {tokens:,} tokens; calibrate with more rows, or look for "
                "NaN in the weights"
            )
        codes_KN = found.qvalue[:outputs].astype(jnp.float32).T
        scales = found.scale[:outputs].T.astype(format.scale_dtype)
        return format.pack(Encoded(codes_KN, scales), -2, w_KN.dtype)
