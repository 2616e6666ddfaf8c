"""Writes a model as a Hugging Face folder that transformers, vLLM and others load without our code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from apt_jax.core.errors import ModelError
from apt_jax.model.architectures.decoder import Decoder
from apt_jax.model.folder import write_json, written_whole
from apt_jax.model.hf.config import write_config
from apt_jax.model.hf.load import CONFIG, GENERATION, INDEX, WEIGHTS
from apt_jax.model.hf.names import HF_NAMES, TensorSpec, tensor_specs
from apt_jax.model.tokenization import Tokenizer

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def save_pretrained(
    model: Decoder,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_size: int | str = "5GB",
    dtype: Any = None,
    generation_config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes config.json, generation_config.json, safetensors and the tokenizer's files.

    The folder appears complete or not at all: it is written beside its place and renamed.

    Args:
      model: a decoder without platform features: Llama, or Qwen3 if it has QK-norm.
      folder: where to; must be absent or empty unless `overwrite`.
      tokenizer: its files and special-token ids go along.
      max_shard_size: bytes, or text such as "5GB"; a single larger tensor has a shard to itself.
      dtype: of the stored tensors; None: as the params are.
      generation_config: entries added to generation_config.json.
      overwrite: replace what is there.

    Returns:
      The folder.

    Raises:
      ModelError: the model has features the format cannot express, or the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ModelError(f"{folder}: is not empty; name another folder, or allow overwriting it")
    limit = parse_size(max_shard_size)
    family = exportable_family(model)
    params = dict(_flat_params(model))
    stored = jnp.dtype(dtype if dtype is not None else next(iter(params.values())).dtype)
    config = write_config(model.config, family, model.vocab_size, stored.name)
    special = _special_ids(tokenizer)
    known = {key: value for key, value in special.items() if value is not None}

    with written_whole(folder) as partial:
        write_json(partial / CONFIG, config | special)
        write_json(partial / GENERATION, known | dict(generation_config or {}))
        if tokenizer is not None:
            tokenizer.save(partial)
        _write_tensors(partial, params, limit, stored)
    return folder


def exportable_family(model: Decoder) -> str:
    """ "llama" or "qwen3". ModelError: the switches that make the model something else, by name."""
    if not isinstance(model, Decoder):
        raise ModelError(f"a {type(model).__name__} has no Hugging Face form; decoders can be exported")
    config, traits = model.config, model.traits
    family = "qwen3" if traits.qk_norm else "llama"
    switches = {
        "autopoietic": traits.autopoietic,
        "left_spin": traits.left_spin and config.left_spin_alpha > 0,
        "logit_softcap": config.logit_softcap is not None,
        "sliding_window": config.sliding_window is not None and family == "llama",
    }
    blocking = [f"model.{key}" for key, on in switches.items() if on]
    if blocking:
        raise ModelError(
            f"the {family} format cannot express {', '.join(blocking)}; export a model trained with these off"
        )
    surplus = [name for name, _ in _flat_params(model) if name not in HF_NAMES]
    if surplus:
        raise ModelError(
            f"the {family} format has no place for parameter '{surplus[0]}' ({len(surplus)} in all); "
            "merge or remove what added it"
        )
    return family


def parse_size(size: int | str) -> int:
    """Bytes of "5GB", "200 MiB" or a number. ModelError: not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B)?", str(size).strip().upper())
    amount = int(float(match[1]) * _UNITS[match[2] or "B"]) if match and match[2] != "IB" else 0
    if amount < 1:
        raise ModelError(
            f"max_shard_size '{size}' is not a size; write for example 5GB, 200MiB or a number of bytes"
        )
    return amount


def _flat_params(model: Decoder) -> Iterator[tuple[str, Any]]:
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        yield ".".join(map(str, path)), param[...]


def _write_tensors(folder: Path, params: Mapping[str, Any], limit: int, dtype: Any) -> None:
    """Plans the shards from shapes, then fills one at a time; each param leaves the device once."""
    shards: list[list[TensorSpec]] = [[]]
    room = limit
    for name, param in params.items():
        for spec in tensor_specs(name, param.shape):
            size = int(np.prod(spec.shape)) * dtype.itemsize
            if size > room and shards[-1]:
                shards.append([])
                room = limit
            shards[-1].append(spec)
            room -= size
    weight_map: dict[str, str] = {}
    host_name, host = "", np.empty(0)
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for spec in shard:
            if spec.param != host_name:
                host_name, host = spec.param, np.asarray(params[spec.param])
            tensor = host if spec.layer is None else host[spec.layer]
            tensors[spec.name] = np.ascontiguousarray(tensor.T if spec.transposed else tensor, dtype)
            weight_map[spec.name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})  # the value transformers asks for
    if len(shards) > 1:
        total = sum(int(np.prod(spec.shape)) for shard in shards for spec in shard) * dtype.itemsize
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """Nulls where unknown: transformers would otherwise assume ids 1 and 2."""
    ids = (None, None, None) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    return dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), ids, strict=True))
