"""Writes a quantised model as a folder that appears complete or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from apt_jax.core.config import Config, to_dict
from apt_jax.core.errors import ModelError
from apt_jax.model.folder import write_json, written_whole
from apt_jax.model.hf.load import GENERATION, WEIGHTS
from apt_jax.trainops.data import vocabulary
from apt_jax.trainops.quantize import files
from apt_jax.trainops.quantize.model import flat_params
from apt_jax.vgpu.quant import QTensor
from apt_jax.vgpu.quant.stored.tensors import describe_format, stored_dtype


def save_quantized(
    model: Any,
    folder: str | Path,
    config: Config,
    tokenizer: Any = None,
    *,
    method: str = "rtn",
    origin: str = "",
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the folder described in `files`.

    Args:
      model: as `quantize_model` returns it.
      folder: absent or empty.
      config: what the model was built from.
      tokenizer: goes along, with the class that reads it.
      method, origin: noted down, for the reader.

    Raises:
      ModelError: the folder holds something, or cannot be written.
    """
    folder = check_out(folder)
    params = flat_params(model)
    try:
        with written_whole(folder) as partial:
            sums = _write_weights(partial / WEIGHTS, params)
            write_json(partial / files.CONFIG, to_dict(config))
            description = {
                "version": files.VERSION,
                "origin": origin,
                "method": method,
                "vocab_size": model.vocab_size,
                "weights": {
                    "/".join(map(str, path)): _describe(param)
                    for path, param in params.items()
                    if isinstance(param, QTensor)
                },
                "crc32": sums,
            }
            write_json(partial / files.DESCRIPTION, description)
            if generation_config:
                write_json(partial / GENERATION, generation_config)
            if tokenizer is not None:
                vocabulary.keep(tokenizer, partial)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error
    return folder


def check_out(folder: str | Path) -> Path:
    """The folder, absent or empty; raises ModelError for another one."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder}: exists already; name a folder that is absent or empty")
    return folder


def _write_weights(file: Path, params: Mapping[tuple[Any, ...], Any]) -> dict[str, int]:
    """Returns the checksum of each tensor."""
    tensors: dict[str, np.ndarray] = {}
    for path, param in params.items():
        for part in files.parts(path, param):
            host = np.asarray(part.leaf)
            host = host.view(stored_dtype(host.dtype))
            for name, tensor in zip(part.names, host if part.stacked else [host], strict=True):
                tensors[name] = np.asarray(np.swapaxes(tensor, -1, -2) if part.transposed else tensor, order="C")
    save_file(tensors, file, metadata={"format": "apt_jax"})
    return {name: files.checksum(tensor) for name, tensor in tensors.items()}


def _describe(q: QTensor) -> dict[str, Any]:
    described = {**describe_format(q.format), "axis": q.axis, "dtype": jnp.dtype(q.dtype).name}
    if q.channel_scales is not None:
        described["channel_scales"] = q.channel_scales.dtype.name
    return described
