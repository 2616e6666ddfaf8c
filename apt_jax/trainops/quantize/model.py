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
from apt_jax.trainops.data.rows import Batch
from apt_jax.trainops.quantize.calibrated import quantize_calibrated
from apt_jax.vgpu.quant.stored import CalibratedMethod, find_method, quantize_params, select
from apt_jax.vgpu.quant.stored.params import Rule


def quantize_model(
    model: Any,
    rules: Sequence[Rule],
    plugins: Plugins,
    *,
    method: str = "rtn",
    batches: Sequence[Batch] = (),
    progress: Callable[[str], None] | None = None,
) -> Any:
    """A model that shares what is not quantised with the given one, which stays as it is.

    Args:
      rules, method: see `apt_jax.vgpu.quant.stored.quantize_params`; the method may be a `CalibratedMethod` too.
      batches: of training data, for such a method: `calibration_batches`. Others look at none.
      progress: called with what is quantised next.

    Raises:
      ConfigError, FormatError: see `apt_jax.vgpu.quant.stored.quantize_params`.
      ModelError: see `quantize_calibrated`.
    """
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    found = find_method(method, plugins)
    if isinstance(found, CalibratedMethod):
        chosen = select(params, rules, plugins, method=found)
        return nnx.merge(graphdef, quantize_calibrated(model, chosen, found, batches, progress))
    return nnx.merge(graphdef, quantize_params(params, rules, plugins, method=method, progress=progress))


def flat_params(model: Any) -> dict[tuple[Any, ...], Any]:
    """Path -> array or QTensor."""
    return flatten_dict(nnx.to_pure_dict(nnx.state(model)))


def model_bytes(model: Any) -> int:
    """Of all leaves of the model's state."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(model)))
