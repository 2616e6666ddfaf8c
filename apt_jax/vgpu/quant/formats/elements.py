"""What one code can stand for: the values of a 4- or 8-bit number before any scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.rounding import (
    lookup,
    middles,
    round_to_float,
    round_to_integer,
    round_to_table,
    without_nan,
)


class Element(Protocol):
    """A grid of numbers. Values are float32 on the grid, native codes have the dtype that matrix units take."""

    @property
    def bits(self) -> int: ...  # of one code: 4 or 8
    @property
    def max(self) -> float: ...  # largest value
    @property
    def dtype(self) -> Any: ...  # of native codes

    def round(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """float32 -> the grid, beyond its ends to the ends; NaN stays NaN where the grid has it, else it is 0."""
        ...

    def to_native(self, values: jax.Array) -> jax.Array: ...  # exact
    def from_native(self, codes: jax.Array) -> jax.Array: ...


@dataclass(frozen=True)
class Float:
    """A small float without infinity; to the nearest, half to even."""

    dtype: Any
    bits: int
    mantissa: int
    min_exponent: int  # of the smallest normal number
    max: float
    has_nan: bool

    def round(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        number = jnp.clip(without_nan(x), -self.max, self.max)
        rounded = round_to_float(number, key, mantissa=self.mantissa, min_exponent=self.min_exponent)
        return jnp.where(jnp.isnan(x), jnp.nan, rounded) if self.has_nan else rounded

    def to_native(self, values: jax.Array) -> jax.Array:
        return values.astype(self.dtype)

    def from_native(self, codes: jax.Array) -> jax.Array:
        return codes.astype(jnp.float32)


@dataclass(frozen=True)
class Integer:
    """Whole numbers, to the nearest, half to even: from -2^(bits-1) to 2^(bits-1) - 1, or from 0 to 2^bits - 1."""

    dtype: Any
    bits: int
    signed: bool = True

    @property
    def min(self) -> float:
        return -float(2 ** (self.bits - 1)) if self.signed else 0.0

    @property
    def max(self) -> float:
        return self.min + 2**self.bits - 1

    def round(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return jnp.clip(round_to_integer(without_nan(x), key), self.min, self.max)

    def to_native(self, values: jax.Array) -> jax.Array:
        return values.astype(self.dtype)

    def from_native(self, codes: jax.Array) -> jax.Array:
        return codes.astype(jnp.float32)


@dataclass(frozen=True)
class Table:
    """Sixteen given values, ascending; at equal distance the lower one. Native codes are indices."""

    levels: tuple[float, ...]
    dtype: Any = jnp.uint4
    bits: int = 4

    @property
    def max(self) -> float:
        return self.levels[-1]

    def round(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        x = jnp.clip(without_nan(x), self.levels[0], self.levels[-1])
        return round_to_table(x, key, self.levels)

    def to_native(self, values: jax.Array) -> jax.Array:
        index = sum((values > middle).astype(jnp.uint8) for middle in middles(self.levels))
        return jnp.asarray(index).astype(self.dtype)

    def from_native(self, codes: jax.Array) -> jax.Array:
        index = codes.astype(jnp.uint8)
        return lookup([index >= i for i in range(1, len(self.levels))], self.levels)


E2M1 = Float(jnp.float4_e2m1fn, bits=4, mantissa=1, min_exponent=0, max=6.0, has_nan=False)
E4M3 = Float(jnp.float8_e4m3fn, bits=8, mantissa=3, min_exponent=-6, max=448.0, has_nan=True)
E5M2 = Float(jnp.float8_e5m2, bits=8, mantissa=2, min_exponent=-14, max=57344.0, has_nan=True)
INT4 = Integer(jnp.int4, bits=4)
INT8 = Integer(jnp.int8, bits=8)
UINT4 = Integer(jnp.uint4, bits=4, signed=False)
