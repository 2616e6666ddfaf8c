"""The pieces of a model that a pipeline runs: its first and last steps, and a group of layers between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from apt_jax.core.errors import ModelError
from apt_jax.model.api import Hidden

Params = Any
Batch = Mapping[str, jax.Array]
_PIECES = ("begin", "advance", "finish")


@struct.dataclass
class Flow:
    """What one stage hands to the next, and, as cotangent, back.

    Attributes:
      x_BTD: the residual stream.
      aux: auxiliary scalars, summed over the layers passed so far.
    """

    x_BTD: jax.Array
    aux: Mapping[str, jax.Array]


@struct.dataclass
class StepInputs:
    """What all microbatches of a step share.

    Attributes:
      controls: curriculum values.
      dropout_key: None switches dropout off.
      scale: float32 [], factor of every sum before it is differentiated.
    """

    controls: Mapping[str, jax.Array]
    dropout_key: jax.Array | None
    scale: jax.Array


@dataclass(frozen=True)
class Pieces:
    """The model cut in pieces; every function is pure. `rest` are the parameters outside of the layers.

    Attributes:
      graphdef: the model's structure.
      objective: `objective(model, batch, controls, dropout_key) -> (total, sums)`.
    """

    graphdef: Any
    objective: Any

    def begin(self, rest: Params, layers: Params, micro: Batch) -> Flow:
        """The stream before the first layer, with auxiliary sums of nothing."""
        model = self.model(rest, layers)
        x_BTD = model.begin(micro["tokens"])
        _, aux = jax.eval_shape(lambda: _advance(model, x_BTD, 0, micro, {}, None))
        return Flow(x_BTD, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux))

    def advance(
        self, model: Any, flow: Flow, first_layer: jax.Array, micro: Batch, index: jax.Array, inputs: StepInputs
    ) -> Flow:
        """`flow` after the layers that `model` holds; `index` is the microbatch's number."""
        key = None if inputs.dropout_key is None else jax.random.fold_in(inputs.dropout_key, index)
        x_BTD, aux = _advance(model, flow.x_BTD, first_layer, micro, inputs.controls, key)
        return Flow(x_BTD, jax.tree.map(jnp.add, flow.aux, aux))

    def loss(
        self, rest: Params, flow: Flow, layers: Params, micro: Batch, inputs: StepInputs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scaled objective of a microbatch, and the sums to report."""
        model = self.model(rest, layers)
        tail = _Tail(model, micro["tokens"], model.finish(flow.x_BTD, flow.aux))
        total, sums = self.objective(tail, micro, inputs.controls, None)
        return total * inputs.scale, sums

    def model(self, rest: Params, layers: Params) -> Any:
        """The model holding these layers only."""
        return nnx.merge(self.graphdef, {**rest, "layers": layers})


def check_staged(model: Any) -> None:
    """Raises ModelError where a model cannot be run in pieces."""
    missing = [name for name in _PIECES if not callable(getattr(model, name, None))]
    if missing:
        raise ModelError(
            f"training.distributed.pipeline_parallel: {type(model).__name__} lacks {', '.join(missing)} of "
            "apt_jax.model.api.StagedModel; add them, or use pipeline_parallel=1"
        )


def _advance(
    model: Any,
    x_BTD: jax.Array,
    first_layer: int | jax.Array,
    micro: Batch,
    controls: Mapping[str, jax.Array],
    key: jax.Array | None,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    return model.advance(
        x_BTD,
        first_layer,
        positions_BT=micro.get("positions"),
        segment_ids_BT=micro.get("segment_ids"),
        controls=controls,
        dropout_key=key,
    )


class _Tail:
    """The model as a loss sees it on the last stage: the layers have run already, elsewhere."""

    def __init__(self, model: Any, tokens_BT: jax.Array, hidden: Hidden):
        self._model, self._tokens_BT, self._hidden = model, tokens_BT, hidden

    def hidden(self, tokens_BT: jax.Array, **_: Any) -> Hidden:
        if tokens_BT is not self._tokens_BT:
            raise ModelError(
                "training.loss: it runs the model on tokens of its own, which pipeline stages cannot; use "
                "pipeline_parallel=1"
            )
        return self._hidden

    def __getattr__(self, name: str) -> Any:
        if name == "layers":
            raise ModelError(
                "training.loss: it reads the layers' parameters, which are spread over pipeline stages; use "
                "pipeline_parallel=1"
            )
        return getattr(self._model, name)

    def __call__(self, tokens_BT: jax.Array, **kwargs: Any) -> jax.Array:
        return self._model.unembed(self.hidden(tokens_BT, **kwargs).x_BTD)
