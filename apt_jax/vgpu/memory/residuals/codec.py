"""How one array that a backward pass needs is kept: a codec, and the one that is made of a number format."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from apt_jax.core.logical import rules_in_force
from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.formats import Format, find_format
from apt_jax.vgpu.quant.qtensor import QTensor

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

_ROW = 256  # values, at least, that share what a format has one of for a whole tensor or channel


@runtime_checkable
class ResidualCodec(Protocol):
    """A way to keep an array; hashable, as it is static in a compiled step. Both functions are traced.

    Attributes:
      stochastic: `encode` is handed a key where one is in force (`core.noise`).
    """

    @property
    def stochastic(self) -> bool: ...

    def encode(self, x: jax.Array, key: jax.Array | None) -> Any:
        """x, float16, bfloat16 or float32 of any shape, as a tree of arrays.

        Raises:
          FormatError: it cannot hold an array of this shape.
        """
        ...

    def decode(self, stored: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        """The array, of the shape and dtype of the one that was encoded."""
        ...


@dataclass(frozen=True)
class FormatCodec:
    """Codes and scales of a number format, in blocks along the last axis, 4-bit codes two in a byte.

    What a format has one of for a whole tensor (NVFP4's second scale) or channel, every row of some 128 neighbours
    has for itself: no value depends on another token, and no maximum is taken over devices.

    Attributes:
      format: of the codes.
      stochastic: round at random without bias: the gradient of a product with weights is then right in the mean. What
        is not linear in the array, as attention and norms, suffers more than it gains, for the error is larger.
    """

    format: Format
    stochastic: bool = False

    def encode(self, x: jax.Array, key: jax.Array | None) -> QTensor:
        rows = x.reshape(self._shape(x))
        amax = jnp.max(jnp.abs(rows.astype(jnp.float32)), axis=-1, keepdims=True)
        return self.format.quantize(rows, axis=-1, key=key, amax=amax)

    def decode(self, stored: QTensor, like: jax.ShapeDtypeStruct) -> jax.Array:
        return stored.dequantize(like.dtype).reshape(like.shape)

    def _shape(self, x: Any) -> tuple[int, ...]:
        """[..., rows, values of a row]."""
        block = self.format.block or 2
        *lead, size = x.shape
        if size % block and len(lead) > 2:  # narrow heads: blocks may span them
            size *= lead.pop()
        self.format.check(jax.ShapeDtypeStruct((*lead, size), x.dtype), -1)
        ways = _tensor_ways()
        ways = ways if size % (ways * block) == 0 else 1  # a row stays on one device
        row = next(row for row in _divisors(size // ways, block) if row >= min(_ROW, size // ways))
        return (*lead, size // row, row)

    def __str__(self) -> str:
        return f"{self.format}, {'stochastic' if self.stochastic else 'nearest'}"


def find_codec(
    wanted: Any, plugins: Plugins | None = None, *, stochastic: bool = False, key: str = ""
) -> ResidualCodec:
    """A codec as it is, or that of a number format: given, or by its registered name.

    Args:
      key: of the config, where the name is from; begins the error.

    Raises:
      FormatError: it is none of these; the line lists all formats.
    """
    if isinstance(wanted, Format):
        return FormatCodec(wanted, stochastic)
    if isinstance(wanted, ResidualCodec):
        return wanted
    if not isinstance(wanted, str) or plugins is None:
        raise FormatError(f"residuals: {wanted!r} is no codec; give one with encode and decode, or a number format")
    try:
        return FormatCodec(find_format(wanted, plugins), stochastic)
    except FormatError as error:
        raise FormatError(f"{key}: {error}" if key else str(error)) from error


def _tensor_ways() -> int:
    rules = rules_in_force()
    return 1 if rules is None else rules.mesh.shape.get("tensor", 1)


@functools.cache
def _divisors(size: int, multiple: int) -> tuple[int, ...]:
    """Multiples of `multiple` that divide `size`, ascending; it is one of them."""
    return tuple(n for n in range(multiple, size + 1, multiple) if size % n == 0)


def nbytes(tree: Any) -> int:
    """Bytes of arrays or shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
