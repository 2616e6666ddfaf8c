"""Reads a quantised model from its folder, exactly as it was; onto one device, or in pieces onto a mesh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding
from safetensors import SafetensorError

from apt_jax.core.config import Config, validate
from apt_jax.core.errors import AptError, ModelError, did_you_mean
from apt_jax.core.logical import AxisRules
from apt_jax.core.registry import Plugins, load_plugins
from apt_jax.model.build import build_model
from apt_jax.model.folder import open_tensors, read_json
from apt_jax.model.hf import read_generation_config
from apt_jax.model.hf.load import WEIGHTS
from apt_jax.trainops.data import vocabulary
from apt_jax.trainops.quantize import files
from apt_jax.trainops.quantize.model import flat_params
from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.stored.tensors import abstract_weight, fill, read_format, stored_dtype

_NEEDED = "a quantised model cannot be read without it"


@dataclass(frozen=True)
class QuantizedModel:
    """A quantised model ready to use.

    Attributes:
      model: fulfils `apt_jax.model.api.LanguageModel`; quantised kernels hold a QTensor.
      tokenizer: None where the folder has none.
      config: what the model was built from.
      description: quantization.json.
      generation: generation_config.json, or empty.
    """

    model: Any
    tokenizer: Any
    config: Config
    description: Mapping[str, Any]
    generation: Mapping[str, Any]


def is_quantized_folder(folder: str | Path) -> bool:
    """Whether `save_quantized` wrote it."""
    return (Path(folder) / files.DESCRIPTION).is_file()


def load_quantized(
    folder: str | Path,
    *,
    dtype: Any = jnp.float32,
    rules: AxisRules | None = None,
    plugins: Plugins | None = None,
) -> QuantizedModel:
    """Restores what `save_quantized` wrote.

    Args:
      dtype: of activations and matmuls.
      rules: cut every array over their mesh, codes and scales where the weight is cut; None: one device.
      plugins: None: loaded by the model's config.

    Raises:
      ModelError: a missing, damaged or foreign file or tensor, or a cut that would break blocks, by name.
    """
    folder = Path(folder)
    description = read_json(folder / files.DESCRIPTION, _NEEDED)
    if description.get("version") != files.VERSION:
        raise ModelError(
            f"{folder / files.DESCRIPTION}: version {description.get('version')!r} cannot be read, only "
            f"{files.VERSION}; quantize the model again"
        )
    config = validate(read_json(folder / files.CONFIG, _NEEDED), source=str(folder / files.CONFIG))
    chosen = config.plugins
    plugins = plugins or load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
    vocab_size = _entry(folder, description, "vocab_size", int)
    abstract = nnx.eval_shape(lambda: build_model(config, vocab_size, plugins, dtype=dtype))
    graphdef, state = nnx.split(abstract)
    axes = {path: param.get_metadata("logical_axes") for path, param in nnx.to_flat_state(state)}
    wanted = _abstract_params(folder, description, flat_params(abstract), plugins)
    sums = _entry(folder, description, "crc32", dict)
    with _Weights(folder / WEIGHTS, sums) as weights:
        parts = (part for path, param in wanted.items() for part in files.parts(path, param))
        weights.check(name for part in parts for name in part.names)
        params = {
            path: jax.device_put(weights.assemble(path, param), _place(param, axes[path], rules, path))
            for path, param in wanted.items()
        }
    return QuantizedModel(
        nnx.merge(graphdef, unflatten_dict(params)),
        vocabulary.load_kept(folder) if (folder / vocabulary.FOLDER).exists() else None,
        config,
        description,
        read_generation_config(folder),
    )


def _abstract_params(
    folder: Path, description: Mapping[str, Any], params: Mapping[tuple[Any, ...], Any], plugins: Plugins
) -> dict[tuple[Any, ...], Any]:
    """What the folder must hold: shapes and dtypes of every parameter."""
    formats = dict(_entry(folder, description, "weights", dict))
    wanted: dict[tuple[Any, ...], Any] = {}
    for path, param in params.items():
        name = "/".join(map(str, path))
        entry = formats.pop(name, None)
        if entry is None:
            wanted[path] = param
            continue
        try:
            weight = jax.ShapeDtypeStruct(param.shape, jnp.dtype(entry["dtype"]))
            wanted[path] = abstract_weight(read_format(entry, plugins), weight, entry.get("channel_scales"))
        except AptError as error:
            raise ModelError(f"{folder / files.DESCRIPTION}: weight '{name}': {error}") from None
        except (KeyError, TypeError):
            raise ModelError(
                f"{folder / files.DESCRIPTION}: weight '{name}': is missing or damaged; quantize the model again"
            ) from None
    if formats:
        raise ModelError(
            f"{folder / files.DESCRIPTION}: the model of {files.CONFIG} has no weight '{min(formats)}'; "
            "the two files do not belong together"
        )
    return wanted


def _place(param: Any, axes: Any, rules: AxisRules | None, path: tuple[Any, ...]) -> Any:
    if rules is None:
        return jax.tree.map(lambda leaf: jax.devices()[0], param)
    name = "/".join(map(str, path))
    try:
        spec = rules.spec(axes, param.shape, name)
        cut = NamedSharding(rules.mesh, spec)
        return param.shardings(rules.mesh, spec) if isinstance(param, QTensor) else cut
    except FormatError as error:
        raise ModelError(f"{name}: {error}") from None


class _Weights:
    """The tensors of the file, read one at a time and checked."""

    def __init__(self, file: Path, sums: Mapping[str, int]):
        self._file, self._sums = file, sums
        self._open = open_tensors(file)

    def __enter__(self) -> _Weights:
        self._open.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.__exit__(*exc)

    def check(self, wanted: Iterable[str]) -> None:
        """Compares the names, both ways."""
        names, found = set(wanted), set(self._open.keys())
        for name in sorted(names - found):
            raise ModelError(f"{self._file}: tensor '{name}' is missing{did_you_mean(name, found - names)}")
        for name in sorted(found - names):
            raise ModelError(f"{self._file}: unexpected tensor '{name}'; the model of {files.CONFIG} is without it")

    def assemble(self, path: tuple[Any, ...], param: Any) -> Any:
        """One parameter on the host."""
        leaves = {part.suffix: self._leaf(part) for part in files.parts(path, param)}
        return fill(param, leaves) if isinstance(param, QTensor) else leaves[""]

    def _leaf(self, part: files.Part) -> np.ndarray:
        dtype = np.dtype(part.leaf.dtype)
        out = np.empty(part.leaf.shape, stored_dtype(dtype))
        for layer, name in enumerate(part.names):
            target = out[layer, ...] if part.stacked else out  # a view, of a scalar too
            view = np.swapaxes(target, -1, -2) if part.transposed else target
            view[...] = self._read(name, view.shape, out.dtype)
        return out.view(dtype)

    def _read(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        try:
            tensor = self._open.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self._file}: tensor '{name}': {str(error).splitlines()[0]}") from None
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ModelError(
                f"{self._file}: tensor '{name}' is {tensor.dtype}{list(tensor.shape)}, but {files.CONFIG} and "
                f"{files.DESCRIPTION} ask for {dtype}{list(shape)}"
            )
        if files.checksum(tensor) != self._sums.get(name):
            raise ModelError(f"{self._file}: tensor '{name}' is damaged (its checksum differs); copy the file again")
        return tensor


def _entry(folder: Path, description: Mapping[str, Any], key: str, kind: type) -> Any:
    value = description.get(key)
    if not isinstance(value, kind):
        raise ModelError(f"{folder / files.DESCRIPTION}: '{key}' is missing or damaged; quantize the model again")
    return value
