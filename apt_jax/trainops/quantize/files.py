"""What a folder of a quantised model holds, and how its tensors are called.

config.json           the run's whole configuration
quantization.json     format of each quantised layer, and a checksum of each tensor
model.safetensors     one tensor for each layer and part, in the Hugging Face layout [out, in], codes packed along in
tokenizer/            as runs keep it
generation_config.json  where the model came with one
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from apt_jax.model.hf.names import HF_NAMES
from apt_jax.vgpu.quant import QTensor
from apt_jax.vgpu.quant.stored.tensors import leaves_of

CONFIG = "config.json"
DESCRIPTION = "quantization.json"
VERSION = 1
STACKED = "layers"


class Part(NamedTuple):
    """One leaf of a parameter, cut into the tensors it is stored as.

    Attributes:
      suffix: of the leaf, appended to each name.
      leaf: the array, or its shape and dtype.
      names: of the tensors, one for each layer; a parameter outside of the layers has one.
      stacked: whether the leaf has a leading layer axis.
      transposed: whether the last two axes are swapped in the file.
    """

    suffix: str
    leaf: Any
    names: list[str]
    stacked: bool
    transposed: bool


def parts(path: tuple[Any, ...], param: Any) -> Iterator[Part]:
    """The leaves of the parameter at `path`, which is an array or a QTensor, possibly abstract."""
    path = tuple(map(str, path))
    stacked = path[0] == STACKED
    pattern = HF_NAMES.get(".".join(path)) or ".".join([STACKED, "{}", *path[1:]] if stacked else path)
    leaves = leaves_of(param) if isinstance(param, QTensor) else [("", param)]
    for suffix, leaf in leaves:
        layers = range(leaf.shape[0]) if stacked else [0]
        names = [pattern.format(layer) + suffix for layer in layers]
        yield Part(suffix, leaf, names, stacked, path[-1] == "kernel")


def checksum(tensor: np.ndarray) -> int:
    """CRC-32 of the bytes, as zip has it."""
    return zlib.crc32(np.ascontiguousarray(tensor).view(np.uint8).data)
