"""The contract of a number format, and the one place where it is found by name."""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from apt_jax.core.errors import unknown_name
from apt_jax.vgpu.quant.errors import FormatError, check_axis, describe
from apt_jax.vgpu.quant.formats.elements import Element
from apt_jax.vgpu.quant.packing import pack4, unpack4
from apt_jax.vgpu.quant.qtensor import QTensor

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


class Encoded(NamedTuple):
    """A quantised array before packing; every array has the rank of the original, so all can be cut alike.

    Attributes:
      values: float32, of the original's shape: values of the format's element.
      scales: in the dtype they are stored in, one for each block: [..., K/block, ...].
      tensor_scale: float32 [1, …, 1], multiplied to all; None where there is no second level.
      zeros: of `scales`' shape and dtype: what is taken from a value before it is scaled; None: nothing.
    """

    values: jax.Array
    scales: jax.Array
    tensor_scale: jax.Array | None = None
    zeros: jax.Array | None = None


@dataclass(frozen=True)
class Format(abc.ABC):
    """A way to keep an array in few bits: codes, and scales that blocks of codes share.

    A subclass is a frozen dataclass whose fields are its options; it sets `name`, `element` and `block` and
    implements `bits`, `encode` and `decode`. All is traced and works under jit, vmap, scan and sharding. Rules that
    every format keeps, so that none passes over a fault in silence:

    - A block with inf or NaN decodes as NaN; other blocks are as if that block were 0. (FP8 with one scale for
      the tensor has no blocks: there only the value itself becomes NaN.)
    - Finite values beyond the range saturate. A block of zeros decodes as zeros. Numbers below 2^-126 count as 0,
      as the CPU and most accelerators have it.
    - Without a key the nearest value is taken. With one, rounding is stochastic and decoding gives x in the mean,
      for every value of a block: a scale that would make the largest saturate is rounded up instead.

    Attributes:
      name: as registered.
      element: what a code can stand for.
      block: values along the axis that share a scale; None: all of them.
    """

    name: ClassVar[str]
    element: ClassVar[Element]
    block: int | None = field(default=None, init=False)

    @property
    @abc.abstractmethod
    def bits(self) -> float:
        """Bits for each stored value, scales included, those that all blocks of an axis share left out."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, axis: int, key: jax.Array | None, amax: jax.Array | None) -> Encoded:
        """Quantises.

        Args:
          x: float32; `axis`, which is negative, has been found to be a multiple of `block`.
          key: for stochastic rounding; None: to nearest.
          amax: largest absolute value of the whole tensor, where x is a part of it; or of each row, [..., 1, ...].
        """

    @abc.abstractmethod
    def decode(self, encoded: Encoded, axis: int) -> jax.Array:
        """float32, of the shape of `encoded.values`."""

    def check(self, x: Any, axis: int) -> int:
        """The axis counted from the end.

        Raises:
          FormatError: no floating-point numbers, no such axis, or one that blocks (or pairs of codes) do not fill.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise FormatError(f"{self.name}: {describe(x)} is not floating point; only such arrays are quantised")
        step = self.block or (2 if self.element.bits == 4 else 1)
        return check_axis(self.name, x, axis, step)

    def quantize(
        self, x: jax.Array, *, axis: int = -1, key: jax.Array | None = None, amax: jax.Array | None = None
    ) -> QTensor:
        """Encodes and packs.

        Args:
          x: floating point, any rank; `axis` is the one that a product contracts. For stacked layers
            [L, K, N] use `jax.vmap(format.quantize)`, so that each has a tensor scale of its own.
          key: rounds stochastically; see `apt_jax.vgpu.quant.rounding`.
          amax: largest absolute value over all shards, where x is one of them (inside shard_map); or [..., 1, ...],
            of size 1 along `axis`: what a format has for a whole tensor it then has for each row.

        Raises:
          FormatError: see `check`.
        """
        axis = self.check(x, axis)
        return self.pack(self.encode(x.astype(jnp.float32), axis, key, amax), axis, x.dtype)

    def pack(self, encoded: Encoded, axis: int, dtype: Any) -> QTensor:
        """What `encode` returned, or values and scales chosen otherwise, in few bits; `axis` is negative."""
        codes = self.element.to_native(encoded.values)
        if self.element.bits == 4:
            codes = pack4(jax.lax.bitcast_convert_type(codes, jnp.uint4).astype(jnp.uint8), axis)
        return QTensor(codes, encoded.scales, encoded.tensor_scale, self, axis, jnp.dtype(dtype), encoded.zeros)

    def unpack(self, q: QTensor) -> jax.Array:
        """Native codes of the original's shape: float4_e2m1fn, float8_e4m3fn, int4, int8, or uint4 indices."""
        if self.element.bits != 4:
            return q.codes
        nibbles = unpack4(q.codes, q.axis).astype(jnp.uint4)
        return jax.lax.bitcast_convert_type(nibbles, self.element.dtype)

    def dequantize(self, q: QTensor, dtype: Any = None) -> jax.Array:
        """The values `q` stands for, computed in float32; dtype None: that of the array that was quantised."""
        values = self.element.from_native(self.unpack(q))
        decoded = self.decode(Encoded(values, q.scales, q.tensor_scale, q.zeros), q.axis)
        if q.channel_scales is not None:
            decoded = decoded * q.channel_scales.astype(jnp.float32)
        return decoded.astype(dtype or q.dtype)

    def fake(
        self, x: jax.Array, *, axis: int = -1, key: jax.Array | None = None, amax: jax.Array | None = None
    ) -> jax.Array:
        """`dequantize(quantize(x))` without packing, in x's dtype; no useful gradient: rounding has none.

        Raises:
          FormatError: see `check`.
        """
        axis = self.check(x, axis)
        return self.decode(self.encode(x.astype(jnp.float32), axis, key, amax), axis).astype(x.dtype)

    def __str__(self) -> str:
        """The name, with the options that differ from their defaults: `nvfp4(order=te)`."""
        changed = [option.name for option in dataclasses.fields(self) if getattr(self, option.name) != option.default]
        options = ", ".join(f"{name}={getattr(self, name)}" for name in changed)
        return f"{self.name}({options})" if options else self.name


def find_format(name: str, plugins: Plugins, **options: Any) -> Format:
    """The format that a plugin registered under `name`, built with `options`.

    Raises:
      FormatError: no such format; the line lists all. Or what the plugin gave is no Format.
      PluginError: it cannot be built.
    """
    registry = plugins.registry("quant_formats")
    if name not in registry:
        raise FormatError(unknown_name("number format", name, registry))
    found = registry.make(name, **options)
    if not isinstance(found, Format):
        raise FormatError(
            f"number format '{name}' of plugin '{registry[name].plugin}' is no Format; subclass "
            "apt_jax.vgpu.quant.Format"
        )
    return found
