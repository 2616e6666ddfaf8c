"""A quantised array that is kept: packed codes and their scales, as one pytree."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.vgpu.quant.errors import FormatError

if TYPE_CHECKING:
    from apt_jax.vgpu.quant.formats.format import Format


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales", "tensor_scale", "zeros", "channel_scales"),
    meta_fields=("format", "axis", "dtype"),
)
@dataclass(frozen=True)
class QTensor:
    """What `Format.quantize` returns.

    Every leaf has the rank of the array and its axes in the same order, so a leading axis (layers, experts) may
    be added by vmap, taken off by scan or indexed away: the static fields stay true. For that reason the shape is
    read off the codes and is no field of its own.

    Attributes:
      codes: 8-bit formats: native codes of the array's shape. 4-bit: uint8 with `axis` halved, see `packing`.
      scales: one for each block, [..., K/block, ...], in the dtype of the format.
      tensor_scale: float32, of size 1 along the axes that were quantised together; None: no second level.
      format: how the codes are read.
      axis: the quantised axis, negative.
      dtype: of the array that was quantised.
      zeros: the code, not necessarily whole, that stands for 0, like `scales`; None: 0 does.
      channel_scales: one for each place along `axis`, of size 1 along the other of the last two axes: what a decoded
        value is multiplied by, as AWQ has it (arXiv 2306.00978); None: nothing.
    """

    codes: jax.Array
    scales: jax.Array
    tensor_scale: jax.Array | None
    format: Format
    axis: int
    dtype: Any
    zeros: jax.Array | None = None
    channel_scales: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that was quantised."""
        shape = list(self.codes.shape)
        shape[self.axis] *= 8 // self.format.element.bits
        return tuple(shape)

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def size(self) -> int:
        """Values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves; what they take on devices and, uncompressed, on disk."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    @property
    def bits_per_value(self) -> float:
        """Measured: all leaves, tensor scales included, over all values."""
        return 8 * self.nbytes / self.size

    @property
    def mT(self) -> QTensor:
        """The last two axes exchanged, codes as they are: what the transposed array has in this format."""
        if self.axis not in (-1, -2):
            raise FormatError(f"{self.format}: axis {self.axis} is quantised; mT exchanges the last two, -2 and -1")
        swapped = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, -1, -2), self)
        return replace(swapped, axis=-3 - self.axis)

    def __getitem__(self, index: Any) -> QTensor:
        """One or several of the leading axis, as `weights[layer]`; all with `...`."""
        if index is ...:
            return self
        if isinstance(index, tuple):
            raise FormatError("a quantised array is indexed along its leading axis only; dequantize it first")
        if -self.axis == self.ndim:
            raise FormatError("the leading axis is the quantised one and cannot be indexed; dequantize it first")
        return jax.tree.map(lambda leaf: leaf[index], self)

    def dequantize(self, dtype: Any = None) -> jax.Array:
        """The values it stands for; dtype None: that of the array that was quantised."""
        return self.format.dequantize(self, dtype)

    def astype(self, dtype: Any) -> jax.Array:
        """As `jax.Array.astype`, so that a layer which casts its weight when it is used takes a stored one as it is."""
        return self.dequantize(dtype)

    def unpack(self) -> jax.Array:
        """Native codes of the array's shape, as matrix units take them, all scales left out; see `Format.unpack`."""
        return self.format.unpack(self)

    def shardings(self, mesh: Mesh, spec: PartitionSpec) -> QTensor:
        """A NamedSharding for each leaf that cuts codes and scales where `spec` cuts the array.

        Leaves that have one entry along a cut axis are replicated along it. The arrays may be abstract.

        Raises:
          FormatError: an axis that does not divide into whole bytes and blocks on every device.
        """
        return jax.tree.map(lambda leaf: NamedSharding(mesh, self._spec(leaf, mesh, spec)), self)

    def _spec(self, leaf: Any, mesh: Mesh, spec: PartitionSpec) -> PartitionSpec:
        entries = []
        for axis, entry in enumerate(tuple(spec) + (None,) * (self.ndim - len(spec))):
            names = (entry,) if isinstance(entry, str) else entry or ()
            parts = math.prod(mesh.shape[name] for name in names)
            if leaf.shape[axis] == 1:
                entry = None
            elif leaf.shape[axis] % parts:
                raise FormatError(
                    f"{self.format}: {entry} cuts axis {axis} of {list(self.shape)} into {parts} parts, which breaks "
                    f"blocks; cut another axis, or this one into a divisor of {leaf.shape[axis]}"
                )
            entries.append(entry)
        return PartitionSpec(*entries)
