"""NVFP4's scales and scaled values in the order of operations of four libraries, one rounding after another."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.formats.elements import E2M1, E4M3
from apt_jax.vgpu.quant.rounding import divide

_SMALLEST_NORMAL = 2.0**E4M3.min_exponent
_FLOAT32_MAX = float(jnp.finfo(jnp.float32).max)


@dataclass(frozen=True)
class TorchAO:
    """torchao `prototype/mx_formats/nvfp4_tensor.py` `nvfp4_quantize`: block scales are at least 2^-6."""

    scale_max: float = E4M3.max

    def tensor_scale(self, amax: jax.Array) -> jax.Array:
        return divide(amax, self.scale_max * E2M1.max)

    def block_scales(self, largest: jax.Array, amax: jax.Array, stretch: float = 1.0) -> jax.Array:
        """Before rounding to e4m3: largest value of each block, of the tensor -> float32."""
        return jnp.clip(divide(divide(largest, E2M1.max), self.tensor_scale(amax)), _SMALLEST_NORMAL, E4M3.max)

    def scaled(self, x: jax.Array, scales: jax.Array, amax: jax.Array) -> jax.Array:
        """x in units of codes; `scales` are float32 and rounded."""
        return x * divide(divide(1.0, self.tensor_scale(amax)), scales)


@dataclass(frozen=True)
class TE:
    """TransformerEngine `pytorch/custom_recipes/quantization_ref_nvfp4.py` `_quantize_blockwise_reference`.

    A block that is lost beside the tensor's largest value has a scale of 0, under codes of 0 and ±6.
    """

    scale_max: float = E4M3.max

    def to_top(self, amax: jax.Array) -> jax.Array:
        return divide(self.scale_max * E2M1.max, amax)

    def tensor_scale(self, amax: jax.Array) -> jax.Array:
        return divide(1.0, self.to_top(amax))

    def block_scales(self, largest: jax.Array, amax: jax.Array, stretch: float = 1.0) -> jax.Array:
        return jnp.clip(largest * (self.to_top(amax) * (1 / jnp.float32(E2M1.max))), 0.0, E4M3.max)

    def scaled(self, x: jax.Array, scales: jax.Array, amax: jax.Array) -> jax.Array:
        return x * jnp.minimum(divide(1.0, scales * self.tensor_scale(amax)), _FLOAT32_MAX)


@dataclass(frozen=True)
class FourOverSix(TE):
    """fouroversix `quantize/pytorch/reference.py` `quantize_to_nvfp4`; under a scale of 0 all codes are +0."""

    def block_scales(self, largest: jax.Array, amax: jax.Array, stretch: float = 1.0) -> jax.Array:
        return jnp.clip(divide(largest, E2M1.max) * self.to_top(amax) * stretch, 0.0, E4M3.max)

    def scaled(self, x: jax.Array, scales: jax.Array, amax: jax.Array) -> jax.Array:
        inverse = divide(1.0, self.tensor_scale(amax) * jnp.where(scales == 0, 1.0, scales))
        return jnp.where(scales == 0, 0.0, x * inverse)


@dataclass(frozen=True)
class CompressedTensors(TE):
    """compressed-tensors `quantization/utils/helpers.py` `calculate_qparams` and `lifecycle/forward_helpers.py`
    `_quantize`; a scale that rounds to 0 is 0.125."""

    def block_scales(self, largest: jax.Array, amax: jax.Array, stretch: float = 1.0) -> jax.Array:
        scales = jnp.clip(self.to_top(amax) * divide(largest, E2M1.max), 0.0, E4M3.max)
        return jnp.where(scales.astype(E4M3.dtype) == 0, 0.125, scales)

    def scaled(self, x: jax.Array, scales: jax.Array, amax: jax.Array) -> jax.Array:
        return divide(x, divide(scales, self.to_top(amax)))


ORDERS = {"torchao": TorchAO, "te": TE, "compressed_tensors": CompressedTensors, "fouroversix": FourOverSix}
