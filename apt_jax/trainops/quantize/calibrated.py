"""Weights rounded by methods that look at data: layer by layer, each for the inputs that it will get.

As GPTQ does it (arXiv:2210.17323, section 4): the rows are run up to a layer whose predecessors are rounded already,
the inputs of its projections are summed up, its weights are rounded, and the rows move on through the rounded layer.
What is held beside the model: one layer's sums on the device, and on the host the residual stream of all rows at one
depth, 4 bytes times rows, tokens and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from apt_jax.core.errors import ModelError
from apt_jax.model.layers.dense import Dense
from apt_jax.trainops.data.batches import Batches
from apt_jax.trainops.data.rows import Batch
from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.formats import Format
from apt_jax.vgpu.quant.stored import CalibratedMethod
from apt_jax.vgpu.quant.stored.params import KERNEL

ROWS = 128  # as in the papers of GPTQ and AWQ

_STACKED = "layers"
_SEEN = "calibration"
_KEYS = ("tokens", "positions", "segment_ids")


def calibration_batches(batches: Batches, rows: int = ROWS) -> list[Batch]:
    """The first batches of training that hold `rows` rows together, or one epoch where there are fewer."""
    count = min(-(-rows // batches.batch_size), len(batches))
    return [batches.batch(step) for step in range(count)]


def quantize_calibrated(
    model: Any,
    chosen: Mapping[str, Format],
    method: CalibratedMethod,
    batches: Sequence[Batch],
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The model's nested parameters with a QTensor for every chosen layer.

    Args:
      model: fulfils `apt_jax.model.api.StagedModel`.
      chosen: path of the layer -> format, as `apt_jax.vgpu.quant.stored.select` finds it.
      batches: `tokens`, `positions` and `segment_ids`, int32 [B, T], all of one shape; padding counts for nothing.
      progress: called with "layer 1 of 12" and so on.

    Raises:
      ModelError: a model that does not run layer by layer, or a chosen projection that is given no inputs there.
      FormatError: the method finds no answer for a layer.
    """
    _check(model, chosen, batches)
    graphdef, state = nnx.split(model)
    rest = nnx.to_pure_dict(state)
    layers: dict[tuple[str, ...], Any] = dict(flatten_dict(rest.pop(_STACKED)))
    names = {path: "/".join(path[:-1]) for path in layers if path[-1] == KERNEL}
    kernels = {path: name for path, name in names.items() if f"{_STACKED}/{name}" in chosen}
    tokens = sum(int((batch["segment_ids"] > 0).sum()) for batch in batches)
    given = [{key: batch[key] for key in _KEYS} for batch in batches]

    def params_of(layers: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
        return {**rest, _STACKED: unflatten_dict(dict(layers))}

    @jax.jit
    def begin(params: Any, batch: Batch) -> jax.Array:
        return nnx.merge(graphdef, params).begin(batch["tokens"])

    @jax.jit
    def watch(params: Any, x_BTD: jax.Array, batch: Batch, index: jax.Array) -> Any:
        model = nnx.merge(graphdef, params)
        model.layers = _Watched(model.layers, frozenset(kernels.values()), method.observe)
        return _advance(model, x_BTD, batch, index)[1][_SEEN]

    @jax.jit
    def advance(params: Any, x_BTD: jax.Array, batch: Batch, index: jax.Array) -> jax.Array:
        return _advance(nnx.merge(graphdef, params), x_BTD, batch, index)[0]

    stream = [np.asarray(begin(params_of(layers), batch)) for batch in given]
    stored: dict[tuple[str, ...], list[QTensor]] = {path: [] for path in kernels}
    count = next(iter(layers.values())).shape[0]
    for number in range(count):
        if progress is not None:
            progress(f"layer {number + 1} of {count}")
        layer = {path: leaf[number : number + 1] for path, leaf in layers.items()}
        params, index = params_of(layer), jnp.int32(number)
        sums = None
        for x_BTD, batch in zip(stream, given, strict=True):
            seen = watch(params, x_BTD, batch, index)
            sums = seen if sums is None else jax.tree.map(jnp.add, sums, seen)
        for path, name in kernels.items():
            q = _round(method, chosen[f"{_STACKED}/{name}"], layer[path][0], sums, name, tokens, number)
            stored[path].append(q)
            layer[path] = jax.tree.map(lambda leaf: leaf[None], q)
        if number + 1 < count:
            params = params_of(layer)
            stream = [np.asarray(advance(params, x, batch, index)) for x, batch in zip(stream, given, strict=True)]
    whole = {path: jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_layers) for path, of_layers in stored.items()}
    return params_of({**layers, **whole})


def _check(model: Any, chosen: Mapping[str, Format], batches: Sequence[Batch]) -> None:
    missing = [name for name in ("begin", "advance") if not callable(getattr(model, name, None))]
    if missing:
        raise ModelError(
            f"{type(model).__name__} lacks {' and '.join(missing)} of apt_jax.model.api.StagedModel, by which it runs "
            "layer by layer; add them, or use a method that looks at no data, as mse"
        )
    outside = [name for name in chosen if not name.startswith(f"{_STACKED}/")]
    if outside:
        raise ModelError(f"{outside[0]}: only projections under '{_STACKED}' are calibrated; leave this one as it is")
    if not batches:
        raise ModelError("no rows to calibrate with; give batches of training data")


def _round(
    method: CalibratedMethod, format: Format, w_KN: jax.Array, sums: Any, name: str, tokens: int, layer: int
) -> QTensor:
    if name not in sums:
        raise ModelError(f"layer {layer}: '{name}' multiplies nothing through Dense; leave it as it is")
    try:
        return method.quantize(format, w_KN, sums[name], tokens)
    except FormatError as error:
        raise FormatError(f"layer {layer}, {name}: {error}") from None


def _advance(model: Any, x_BTD: jax.Array, batch: Batch, index: jax.Array) -> tuple[jax.Array, Mapping[str, Any]]:
    return model.advance(x_BTD, index, positions_BT=batch["positions"], segment_ids_BT=batch["segment_ids"])


class _Watched(nnx.Module):
    """A layer that hands out, beside its auxiliary values, what is observed of its projections' inputs.

    They leave the scan over layers as other auxiliary values do, so that nothing is called back from compiled code.
    """

    def __init__(self, layer: Any, names: frozenset[str], observe: Callable[[jax.Array], Any]) -> None:
        self.layer, self.names, self.observe = layer, names, observe

    def __call__(self, x_BTD: jax.Array, inputs: Any, index: jax.Array, cache: Any) -> tuple[Any, Any, Any]:
        counts_BT = inputs.mask.q_segments_BT > 0
        seen: dict[str, Any] = {}

        def watched(name: str, dot_general: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            def dot(x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
                kept = jnp.where(counts_BT[..., None], x.astype(jnp.float32), 0)
                sums = self.observe(kept.reshape(-1, x.shape[-1]))
                seen[name] = jax.tree.map(jnp.add, seen[name], sums) if name in seen else sums
                return dot_general(x, *args, **kwargs)

            return dot

        for path, module in nnx.iter_modules(self.layer):
            name = "/".join(map(str, path))
            if isinstance(module, Dense) and name in self.names:
                module.dot_general = watched(name, module.dot_general)
        x_BTD, cache, aux = self.layer(x_BTD, inputs, index, cache)
        return x_BTD, cache, {**aux, _SEEN: seen}
