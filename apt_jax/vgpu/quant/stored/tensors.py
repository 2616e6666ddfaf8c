"""A quantised array as plain tensors with names, and back; what a file format has to know of it.

Names follow compressed-tensors: for `x.weight` there are `x.weight_packed` (two codes in a byte; 8-bit codes are
`x.weight` itself), `x.weight_scale`, and where there are any `x.weight_global_scale`, `x.weight_zero_point` and
`x.weight_channel_scale`, which is a name of ours. Numbers of 8 bits that numpy has no name for are stored as bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.vgpu.quant.formats import Format, find_format
from apt_jax.vgpu.quant.qtensor import QTensor
from apt_jax.vgpu.quant.stored.methods import quantize_weight

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

_SUFFIXES = {
    "scales": "_scale",
    "tensor_scale": "_global_scale",
    "zeros": "_zero_point",
    "channel_scales": "_channel_scale",
}
_PLAIN = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.uint8, jnp.int8)


def leaves_of(q: QTensor) -> Iterator[tuple[str, Any]]:
    """(suffix of the name, leaf) of each part that there is; leaves may be abstract."""
    yield ("_packed" if q.format.element.bits == 4 else ""), q.codes
    for field, suffix in _SUFFIXES.items():
        leaf = getattr(q, field)
        if leaf is not None:
            yield suffix, leaf


def stored_dtype(dtype: Any) -> np.dtype:
    """The dtype in a file: the same, or uint8 for small floats."""
    return np.dtype(dtype) if dtype in _PLAIN else np.dtype(np.uint8)


def describe_format(format: Format) -> dict[str, Any]:
    """Name and options, for JSON."""
    options = [option.name for option in dataclasses.fields(format) if option.init]
    return {"format": format.name, "options": {name: getattr(format, name) for name in options}}


def read_format(description: Mapping[str, Any], plugins: Plugins) -> Format:
    """The inverse of `describe_format`; raises FormatError or PluginError where it cannot be had."""
    return find_format(str(description["format"]), plugins, **description.get("options", {}))


def abstract_weight(format: Format, weight: Any, channel_scales: Any = None) -> QTensor:
    """Shapes and dtypes of a weight [..., K, N] in this format, of a ShapeDtypeStruct.

    Args:
      channel_scales: their dtype; None: it has none.
    """
    abstract = jax.eval_shape(lambda w: quantize_weight(w, format), weight)
    if channel_scales is None:
        return abstract
    scales = jax.ShapeDtypeStruct((*weight.shape[:-1], 1), jnp.dtype(channel_scales))
    return dataclasses.replace(abstract, channel_scales=scales)


def fill(abstract: QTensor, leaves: Mapping[str, Any]) -> QTensor:
    """The QTensor whose leaves, by suffix, are these."""
    packed = "_packed" if abstract.format.element.bits == 4 else ""
    given = {field: leaves[suffix] for field, suffix in _SUFFIXES.items() if suffix in leaves}
    return dataclasses.replace(abstract, codes=leaves[packed], **given)
