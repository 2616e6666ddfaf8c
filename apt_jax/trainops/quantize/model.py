"""A model with its projections quantised: the same modules, whose kernels hold a QTensor in place of an array.

`Dense` casts its kernel when it uses it, and for a QTensor that decodes it: one layer at a time under the scan over
layers, so that float weights exist for no more than one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict

from apt_jax.core.registry import Plugins
from apt_jax.vgpu.quant.stored import quantize_params
from apt_jax.vgpu.quant.stored.params import Rule


def quantize_model(
    model: Any,
    rules: Sequence[Rule],
    plugins: Plugins,
    *,
    method: str = "rtn",
    progress: Callable[[str], None] | None = None,
) -> Any:
    """A model that shares what is not quantised with the given one, which stays as it is.

    Raises:
      ConfigError, FormatError: see `apt_jax.vgpu.quant.stored.quantize_params`.
    """
    graphdef, state = nnx.split(model)
    params = quantize_params(nnx.to_pure_dict(state), rules, plugins, method=method, progress=progress)
    return nnx.merge(graphdef, params)


def flat_params(model: Any) -> dict[tuple[Any, ...], Any]:
    """Path -> array or QTensor."""
    return flatten_dict(nnx.to_pure_dict(nnx.state(model)))


def model_bytes(model: Any) -> int:
    """Of all leaves of the model's state."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(model)))
