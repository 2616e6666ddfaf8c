"""AWQ: channels that carry large inputs are scaled up before rounding, and back afterwards (arXiv:2306.00978)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from qwix.contrib import awq_core

from apt_jax.vgpu.quant import QTensor
from apt_jax.vgpu.quant.formats import Format
from apt_jax.vgpu.quant.stored import CalibratedMethod, quantize_weight
from apt_jax_qwix.how import how_to_quantize


class AWQ(CalibratedMethod):
    """W ≈ r · Q(W / r): one r for each input channel, a power of its mean |x| that qwix searches for.

    The paper folds r into the layer before. Here it stays with the tensor, bfloat16, 16/N bits a weight: that is exact
    whatever comes before, as it is where the outputs of a layer go to several others or through a nonlinearity.
    """

    def observe(self, x_TK: jax.Array) -> jax.Array:
        """Σ|x|, [K]."""
        return jnp.sum(jnp.abs(x_TK), 0)

    def check(self, format: Format) -> None:
        how_to_quantize(format)

    def quantize(self, format: Format, w_KN: jax.Array, sums: Any, tokens: int) -> QTensor:
        w = w_KN.astype(jnp.float32)
        scales_1K = awq_core.search_optimal_scales(w.T, sums / tokens, how_to_quantize(format))
        back_K1 = (1 / scales_1K).T.astype(jnp.bfloat16)
        q = quantize_weight(w / back_K1.astype(jnp.float32), format)
        return dataclasses.replace(q, channel_scales=back_K1, dtype=jnp.dtype(w_KN.dtype))
