"""Formats of apt_jax in the terms of qwix."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from qwix.contrib.gptq_core import qarray

from apt_jax.vgpu.quant import FormatError
from apt_jax.vgpu.quant.formats import MXFP4, NF4, NVFP4, Format, Int4, Int8, UInt4

_NEAREST = {
    Int4: (jnp.int4, "absmax"),
    Int8: (jnp.int8, "absmax"),
    UInt4: (jnp.int4, "minmax"),
    NF4: ("nf4", "absmax"),
    MXFP4: ("mxfp4", "absmax"),
    NVFP4: (jnp.float4_e2m1fn, "absmax"),  # not "nvfp4", which has no scale for the tensor and loses small weights
}


def how_to_quantize(format: Format) -> Any:
    """What comes nearest to the format for weights [N, K] with the contracted axis last, blocks along it.

    Raises:
      FormatError: nothing does.
    """
    if type(format) not in _NEAREST:
        names = ", ".join(sorted(kind.name for kind in _NEAREST))
        raise FormatError(f"{format}: qwix has nothing like it; use {names}, or another method")
    qtype, calibration = _NEAREST[type(format)]
    tiles = {1: format.block} if format.block else {}
    return qarray.HowToQuantize(
        qtype=qtype, channelwise_axes=[0], tiled_axes=tiles, calibration_method=calibration
    )
