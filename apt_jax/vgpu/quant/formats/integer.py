"""Integers with one scale for each group or channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.errors import FormatError, check_choice
from apt_jax.vgpu.quant.formats.blocks import Blocks
from apt_jax.vgpu.quant.formats.elements import INT4, INT8, Integer
from apt_jax.vgpu.quant.formats.format import Encoded, Format
from apt_jax.vgpu.quant.formats.scales import cover, inverse, nan_unless_finite
from apt_jax.vgpu.quant.rounding import divide

Rule = Literal["no_clipping", "symmetric", "q4_0"]
ScaleDtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class _Integer(Format):
    """x ≈ code · scale.

    Attributes:
      block: values that share a scale; None: a whole channel.
      rule: how a block's scale is chosen, for codes from -8 to 7 (int8 alike).
        no_clipping: the larger of max / 7 and min / -8. torchao `MappingType.SYMMETRIC_NO_CLIPPING_ERR`.
        symmetric: amax / 7.5, so the largest value may lose half a step: 3 % more error on Gaussians by 32, and
          with a key no_clipping instead. torchao `MappingType.SYMMETRIC`, compressed-tensors.
        q4_0: the value farthest from 0 is -8, so scales have a sign; half away from -8. gguf `Q4_0`, int4 only.
      scale_dtype: stored; codes are those nearest under the stored scale (q4_0: under the exact one, as gguf).
    """

    block: int | None = None
    rule: Rule = "no_clipping"
    scale_dtype: ScaleDtype = "bfloat16"
    element: ClassVar[Integer]
    rules: ClassVar[tuple[str, ...]] = ("no_clipping", "symmetric")

    def __post_init__(self) -> None:
        check_choice(self.name, "rule", self.rule, self.rules)
        check_choice(self.name, "scale_dtype", self.scale_dtype, ("bfloat16", "float16", "float32"))
        if self.block is not None and (self.block < 2 or self.block % 2):
            raise FormatError(f"{self.name}: block={self.block}; give an even number, as 64, or None for a channel")

    @property
    def bits(self) -> float:
        scale_bits = 8 * jnp.dtype(self.scale_dtype).itemsize
        return self.element.bits + (scale_bits / self.block if self.block else 0)

    def encode(self, x: jax.Array, axis: int, key: jax.Array | None, amax: jax.Array | None) -> Encoded:
        blocks = Blocks((axis,), self.block)
        split = blocks.split(x)
        if self.rule == "q4_0":
            return self._encode_q4_0(split, blocks, axis, key)
        element, largest = self.element, blocks.amax(split)
        if self.rule == "symmetric" and key is None:
            exact = divide(largest, (element.max - element.min) / 2)
        else:
            high, low = blocks.reduce(split, jnp.max), blocks.reduce(split, jnp.min)
            exact = jnp.maximum(divide(low, element.min), divide(high, element.max))
        stored = exact.astype(self.scale_dtype)
        if key is not None:
            stored = cover(stored, stored.astype(jnp.float32), exact, 1.0)
        stored = nan_unless_finite(largest, stored)
        values = element.round(split * blocks.expand(inverse(stored.astype(jnp.float32))), key)
        return Encoded(blocks.join(values), stored)

    def decode(self, encoded: Encoded, axis: int) -> jax.Array:
        blocks = Blocks((axis,), self.block)
        scales = encoded.scales.astype(jnp.float32)
        return blocks.join(blocks.split(encoded.values) * blocks.expand(scales))

    def _encode_q4_0(self, split: jax.Array, blocks: Blocks, axis: int, key: jax.Array | None) -> Encoded:
        if key is not None:
            raise FormatError("int4: rule=q4_0 rounds to the nearest code only; use rule=no_clipping with a key")
        farthest = jnp.argmax(jnp.abs(split), axis, keepdims=True)
        exact = jnp.take_along_axis(split, farthest, axis) / -8
        values = jnp.floor(jnp.nan_to_num(split * inverse(exact)) + 8.5) - 8
        stored = nan_unless_finite(blocks.amax(split), jnp.squeeze(exact, axis).astype(self.scale_dtype))
        return Encoded(blocks.join(jnp.clip(values, INT4.min, INT4.max)), stored)


@dataclass(frozen=True)
class Int8(_Integer):
    """8-bit integers, by default one scale for each channel; 8 bits a value, 8.125 in groups of 128."""

    name: ClassVar[str] = "int8"
    element: ClassVar[Integer] = INT8


@dataclass(frozen=True)
class Int4(_Integer):
    """4-bit integers, by default in groups of 64: 4.25 bits a value; 4.5 by 32, 4.125 by 128."""

    block: int | None = 64
    name: ClassVar[str] = "int4"
    element: ClassVar[Integer] = INT4
    rules: ClassVar[tuple[str, ...]] = ("no_clipping", "symmetric", "q4_0")


def int8_g128() -> Int8:
    return Int8(block=128)


def int4_g32() -> Int4:
    return Int4(block=32)


def int4_g128() -> Int4:
    return Int4(block=128)
