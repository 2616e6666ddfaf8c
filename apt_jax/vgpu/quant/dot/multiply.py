"""One product of two operands in their formats: natively where the target can, else of exactly the same numbers.

An operand is values · whole, `whole` being the scale that all values along the contracted axis share (NVFP4's second
level, FP8's and a channel's only one); it is multiplied to the float32 result. Without it, values of NVFP4, MX, FP8
and int8 have few bits: bfloat16 holds them exactly, and emulation costs a bfloat16 product and not a float32 one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.dot.hardware import Way
from apt_jax.vgpu.quant.formats import FP8E4M3, FP8E5M2, MXFP4, MXFP8, NVFP4, Encoded, Format, Int8


@dataclass(frozen=True)
class Operand:
    """An array [..., rows, C] or [..., C, rows] and how it is rounded.

    Attributes:
      array: in compute dtype.
      axis: the contracted axis along which blocks lie, negative: -1 or -2. Where it is -2, leading axes are contracted
        with it.
      format: None: the array as it is.
      key: for stochastic rounding; None: to nearest.
    """

    array: jax.Array
    axis: int
    format: Format | None
    key: jax.Array | None = None


def multiply(left: Operand, right: Operand, way: Way) -> jax.Array:
    """left · right over the contracted axes, float32: [rows of the left..., rows of the right].

    Raises:
      FormatError: blocks do not fill an axis.
    """
    if way == "block_scaled":
        return _block_scaled(left, right)
    return _dot(left, right, native=way == "fp8")


def _dot(left: Operand, right: Operand, *, native: bool) -> jax.Array:
    (a, a_whole), (b, b_whole) = (_values(operand, native) for operand in (left, right))
    if not native:
        # Rounded operands of a format that bfloat16 does not hold exactly are float32; the other follows.
        a, b = (x.astype(jnp.promote_types(a.dtype, b.dtype)) for x in (a, b))
    y = jax.lax.dot_general(a, b, _contracted(left, right), preferred_element_type=jnp.float32)
    if a_whole is not None:
        y = y * (a_whole if a_whole.ndim == 0 else jnp.expand_dims(a_whole, -1))
    return y if b_whole is None else y * b_whole


def _contracted(left: Operand, right: Operand) -> Any:
    axes = tuple(
        (operand.array.ndim - 1,) if operand.axis == -1 else tuple(range(operand.array.ndim - 1))
        for operand in (left, right)
    )
    return axes, ((), ())


def _values(operand: Operand, native: bool) -> tuple[jax.Array, jax.Array | None]:
    """The numbers to multiply, and the scale to multiply the result by: [] or one for each row."""
    x, format = operand.array, operand.format
    if format is None:
        return x, None
    axis = format.check(x, operand.axis)
    if not _splits(format):
        return format.fake(x.astype(jnp.float32), axis=axis, key=operand.key), None
    encoded = format.encode(x.astype(jnp.float32), axis, operand.key, None)
    if format.block is None:
        values, whole = encoded.values, encoded.scales
    else:
        values = format.decode(Encoded(encoded.values, encoded.scales), axis)
        whole = encoded.tensor_scale
    if native:
        values = format.element.to_native(values)
    else:
        values = values.astype(jnp.bfloat16 if x.dtype == jnp.bfloat16 else jnp.float32)
    return values, None if whole is None else _per_row(whole.astype(jnp.float32), axis)


def _splits(format: Format) -> bool:
    """Whether values are exact in bfloat16 once the scale of the whole axis is left out."""
    per_channel = isinstance(format, Int8) and format.block is None
    return per_channel or isinstance(format, NVFP4 | MXFP4 | MXFP8 | FP8E4M3 | FP8E5M2)


def _per_row(whole: jax.Array, axis: int) -> jax.Array:
    return whole.reshape(()) if whole.size == 1 else jnp.squeeze(whole, axis)


def _block_scaled(left: Operand, right: Operand) -> jax.Array:
    (a, a_scales, a_whole), (b, b_scales, b_whole) = map(_coded, (left, right))
    y = jax.nn.scaled_matmul(
        a[None], b[None], a_scales[None], b_scales[None], preferred_element_type=jnp.float32
    )[0]
    for whole in (a_whole, b_whole):
        y = y if whole is None else y * whole.reshape(())
    rows = left.array.shape[:-1] if left.axis == -1 else left.array.shape[-1:]
    return y.reshape(*rows, y.shape[-1])


def _coded(operand: Operand) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Native codes [rows, C], their scales [rows, C/block], and the tensor's."""
    format, x = operand.format, operand.array
    assert format is not None
    axis = format.check(x, operand.axis)
    encoded = format.encode(x.astype(jnp.float32), axis, operand.key, None)
    codes, scales = format.element.to_native(encoded.values), encoded.scales
    if isinstance(format, NVFP4) and format.tiles:  # the units know rows of blocks only
        scales = jnp.repeat(scales, format.block, axis=-3 - axis)
    return _rows(codes, axis), _rows(scales, axis), encoded.tensor_scale


def _rows(x: jax.Array, axis: int) -> jax.Array:
    x = x.reshape(-1, x.shape[-1])
    return x if axis == -1 else x.T
