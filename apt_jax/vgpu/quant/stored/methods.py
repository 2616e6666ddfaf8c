"""Ways to round a weight into a format, none of which looks at data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax

from apt_jax.core.errors import unknown_name
from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.formats import Format
from apt_jax.vgpu.quant.qtensor import QTensor
from apt_jax.vgpu.quant.stored.clip import clipped
from apt_jax.vgpu.quant.stored.hqq import half_quadratic

Method = Callable[[Format, jax.Array, int], QTensor]


def round_to_nearest(format: Format, x: jax.Array, axis: int) -> QTensor:
    """As the format itself does."""
    return format.quantize(x, axis=axis)


METHODS: Mapping[str, Method] = {"hqq": half_quadratic, "mse": clipped, "rtn": round_to_nearest}


def check_method(name: str) -> Method:
    """The method by name; raises FormatError for another one."""
    if name not in METHODS:
        raise FormatError(unknown_name("quantisation method", name, METHODS))
    return METHODS[name]


@functools.partial(jax.jit, static_argnames=("format", "method", "axis"))
def quantize_weight(w: jax.Array, format: Format, method: str = "rtn", *, axis: int = -2) -> QTensor:
    """[..., K, N] -> QTensor: leading axes are layers or experts, each quantised for itself, one after another.

    Raises:
      FormatError: an unknown method, one that cannot serve the format, or blocks that do not fill the axis.
    """
    apply = check_method(method)
    if w.ndim == 2:
        return apply(format, w, axis)
    return jax.lax.map(lambda w: quantize_weight(w, format, method, axis=axis), w)
