"""Reads a Hugging Face folder (config.json, safetensors) into a model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError, did_you_mean
from apt_jax.model.architectures.decoder import Decoder
from apt_jax.model.architectures.llama import llama
from apt_jax.model.architectures.qwen3 import qwen3
from apt_jax.model.folder import open_tensors, read_json
from apt_jax.model.hf.config import read_config
from apt_jax.model.hf.names import IGNORED_SUFFIXES, TensorSpec, tensor_specs
from apt_jax.model.tokenization import Tokenizer, load_tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"

_FACTORIES = {"llama": llama, "qwen3": qwen3}
_NEEDED = f"a model folder holds {CONFIG} and {WEIGHTS}"
_FLOATS = ("F64", "F32", "F16", "BF16")


def from_pretrained(
    folder: str | Path, dtype: Any = jnp.float32, *, param_dtype: Any = jnp.float32
) -> tuple[Decoder, Tokenizer | None, ModelConfig]:
    """Loads a Llama or Qwen3 folder; nothing in it is executed.

    Args:
      folder: holds config.json and model.safetensors, or shards with their index; a tokenizer is optional.
      dtype: of activations and matmuls.
      param_dtype: of the params; float32 to train, bfloat16 to save memory when only generating.

    Returns:
      The model, the tokenizer or None, and the model's config.

    Raises:
      ModelError: a missing or damaged file, a setting that is not implemented, or tensors that do not fit.
    """
    folder = Path(folder)
    config = read_config(read_json(folder / CONFIG, _NEEDED), folder / CONFIG)
    factory = _FACTORIES[config.architecture]
    vocab_size = config.vocab_size or 0
    abstract = nnx.eval_shape(lambda: factory(config, vocab_size, nnx.Rngs(0), dtype=dtype))
    graphdef, state = nnx.split(abstract)
    params = {".".join(map(str, path)): (path, param) for path, param in nnx.to_flat_state(state)}
    specs = {name: list(tensor_specs(name, param.shape)) for name, (_, param) in params.items()}

    with _Tensors(folder) as tensors:
        tensors.check(spec for group in specs.values() for spec in group)
        if config.tie_word_embeddings:
            tensors.check_tied("model.embed_tokens.weight", "lm_head.weight")
        loaded = [
            (path, param.replace(jnp.asarray(_assemble(tensors, specs[name], param.shape, param_dtype))))
            for name, (path, param) in params.items()
        ]
    model = nnx.merge(graphdef, nnx.from_flat_state(loaded))
    has_tokenizer = (folder / "tokenizer.json").is_file()
    return model, load_tokenizer(folder) if has_tokenizer else None, config


def _assemble(tensors: _Tensors, specs: list[TensorSpec], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """One param as a host array; beside it only one tensor is in memory."""
    out = np.empty(shape, dtype)
    for spec in specs:
        tensor = tensors.read(spec.name)
        target = out if spec.layer is None else out[spec.layer]
        target[...] = tensor.T if spec.transposed else tensor
    return out


class _Tensors:
    """The tensors of a folder by name, in one file or in shards."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._file_of = self._locate()

    def __enter__(self) -> _Tensors:
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._open.values():
            handle.__exit__(*exc)

    def check(self, wanted: Iterable[TensorSpec]) -> None:
        """Compares names, shapes and dtypes, reading headers only."""
        specs = {spec.name: spec for spec in wanted}
        surplus = [
            name
            for name in self._file_of
            if name not in specs and name != "lm_head.weight" and not name.endswith(IGNORED_SUFFIXES)
        ]
        for name, spec in specs.items():
            if name not in self._file_of:
                raise ModelError(f"{self._folder}: tensor '{name}' is missing{did_you_mean(name, surplus)}")
            header = self._slice(name)
            if tuple(header.get_shape()) != spec.shape:
                raise ModelError(
                    f"{self._folder}: tensor '{name}' has shape {tuple(header.get_shape())}, "
                    f"but config.json asks for {spec.shape}"
                )
            if header.get_dtype() not in _FLOATS:
                raise ModelError(
                    f"{self._folder}: tensor '{name}' is {header.get_dtype()}; readable: {', '.join(_FLOATS)}"
                )
        if surplus:
            raise ModelError(
                f"{self._folder}: unexpected tensor '{surplus[0]}' ({len(surplus)} in all); "
                "config.json describes a model without it"
            )

    def check_tied(self, table: str, head: str) -> None:
        """A head stored beside a tied table must be that table."""
        if head in self._file_of and not np.array_equal(self.read(table), self.read(head)):
            raise ModelError(
                f"{self._folder}: config.json ties the head to the embedding, but '{head}' differs; "
                "set tie_word_embeddings to false there"
            )

    def read(self, name: str) -> np.ndarray:
        return self._handle(self._file_of[name]).get_tensor(name)

    def _slice(self, name: str) -> Any:
        file = self._file_of[name]
        try:
            return self._handle(file).get_slice(name)
        except SafetensorError:
            raise ModelError(
                f"{self._folder / file}: lacks tensor '{name}', which {INDEX} promises"
            ) from None

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = open_tensors(self._folder / file).__enter__()
        return self._open[file]

    def _locate(self) -> Mapping[str, str]:
        index = self._folder / INDEX
        if index.is_file():
            files = read_json(index, _NEEDED).get("weight_map")
            if not isinstance(files, dict) or not files:
                raise ModelError(f"{index}: has no weight_map")
            for file in files.values():
                if not isinstance(file, str) or Path(file).name != file:
                    raise ModelError(f"{index}: shard '{file}' must be a file name in the same folder")
            return files
        if not (self._folder / WEIGHTS).is_file():
            raise ModelError(
                f"{self._folder}: no {WEIGHTS} and no {INDEX}; convert older weights with transformers"
            )
        return dict.fromkeys(self._handle(WEIGHTS).keys(), WEIGHTS)


def read_generation_config(folder: str | Path) -> dict[str, Any]:
    """generation_config.json as it stands, or an empty dict. ModelError: damaged."""
    path = Path(folder) / GENERATION
    return read_json(path, _NEEDED) if path.is_file() else {}
