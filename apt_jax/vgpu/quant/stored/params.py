"""Which weights are stored in which format, and the parameters with those put in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.formats import Format, find_format
from apt_jax.vgpu.quant.qtensor import QTensor
from apt_jax.vgpu.quant.rules import assign
from apt_jax.vgpu.quant.stored.methods import (
    CalibratedMethod,
    Method,
    find_method,
    quantize_weight,
    round_to_nearest,
)

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

KERNEL = "kernel"

Rule = tuple[str, str | Format | None]


def quantize_params(
    params: Mapping[str, Any],
    rules: Sequence[Rule],
    plugins: Plugins,
    *,
    method: str = "rtn",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Nested parameters with a QTensor wherever a rule names a format.

    Args:
      params: nested mappings of arrays, as `nnx.to_pure_dict(nnx.state(model))`. A weight is a leaf named `kernel`,
        [..., K, N] with the contracted axis K; leading axes are layers.
      rules: (pattern, format), see `apt_jax.vgpu.quant.rules`; the format is a name or built with options.
      method: see `find_method`; one that looks at no data.
      progress: called with the path of each weight before it is quantised.

    Raises:
      ConfigError: a broken rule, or one that applies to no layer.
      FormatError: unknown names, or a weight that blocks do not fill. All before any is quantised.
    """
    rounding = find_method(method, plugins)
    if isinstance(rounding, CalibratedMethod):
        raise FormatError(f"method {method} needs a model that runs; use apt_jax.trainops.quantize.quantize_model")
    chosen = select(params, rules, plugins, method=rounding)

    def quantize(path: Any, leaf: Any) -> Any:
        layer = path_of(path)
        if layer not in chosen:
            return leaf
        if progress is not None:
            progress(layer)
        return quantize_weight(leaf, chosen[layer], rounding)

    return jax.tree_util.tree_map_with_path(quantize, params)


def select(
    params: Mapping[str, Any], rules: Sequence[Rule], plugins: Plugins, *, method: Method = round_to_nearest
) -> dict[str, Format]:
    """Path of the layer -> its format, for those that get one; `params` may be abstract.

    Raises:
      ConfigError, FormatError: see `quantize_params`.
    """
    flat = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: isinstance(x, QTensor))
    layers = {layer: leaf for path, leaf in flat if (layer := path_of(path)) is not None}
    chosen: dict[str, Format] = {}
    for layer, format in assign(layers, rules, lambda wanted: _format(wanted, plugins)).items():
        if format is None:
            continue
        leaf = layers[layer]
        if isinstance(leaf, QTensor):
            raise FormatError(f"{layer}: is quantised already, as {leaf.format}; start from the float weights")
        _check(layer, leaf, format, method)
        chosen[layer] = format
    return chosen


def path_of(path: Any) -> str | None:
    """`layers/mlp/up` for the jax path of a kernel; None for what is none."""
    keys = [str(getattr(key, "key", key)) for key in path]
    return "/".join(keys[:-1]) if keys[-1] == KERNEL else None


def _check(layer: str, leaf: Any, format: Format, method: Method) -> None:
    weight = jax.ShapeDtypeStruct(leaf.shape[-2:], leaf.dtype)
    try:
        format.check(weight, -2)
    except FormatError as error:
        raise FormatError(f"{layer}: {error}; or leave the layer as it is: --keep='{layer}'") from None
    if isinstance(method, CalibratedMethod):
        method.check(format)
    else:
        jax.eval_shape(lambda w: method(format, w, -2), weight)  # raises where the two do not go together


def _format(format: str | Format, plugins: Plugins) -> Format:
    return find_format(format, plugins) if isinstance(format, str) else format
