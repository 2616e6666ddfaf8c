"""Gradients of a batch: at once, by microbatches one after another, or through pipeline stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from apt_jax.core import noise
from apt_jax.core.config.schema import TrainingConfig
from apt_jax.trainops.distributed.memory_kinds import add_layers, to_host
from apt_jax.trainops.distributed.pipeline.replay import validate
from apt_jax.trainops.distributed.pipeline.run import Pipeline
from apt_jax.trainops.distributed.pipeline.stage import Pieces, StepInputs, check_staged
from apt_jax.trainops.distributed.pipeline.table import make_table
from apt_jax.trainops.distributed.strategy import Strategy
from apt_jax.trainops.engine.objective import Batch, Objective

__all__ = ["Gradients", "StepInputs", "make_gradients"]

Sums = dict[str, jax.Array]


class Gradients(Protocol):
    """What a step needs of a batch; traced. Sums are over tokens, see `Objective`."""

    def __call__(self, params: Any, batch: Batch, inputs: StepInputs) -> tuple[Any, Sums]:
        """Gradients of `inputs.scale` times the summed objective, and the sums."""
        ...

    def sums(self, params: Any, batch: Batch, inputs: StepInputs) -> Sums:
        """The sums alone."""
        ...


def make_gradients(
    model: nnx.Module, graphdef: Any, objective: Objective, strategy: Strategy, config: TrainingConfig
) -> Gradients:
    """The way that the strategy asks for.

    Raises:
      ModelError: pipeline stages of a model that cannot be run in pieces.
    """
    count = config.gradient_accumulation_steps
    if strategy.mesh.shape["pipe"] > 1:
        check_staged(model)
    several = count > 1 and strategy.mesh.shape["data"] > 1 and not strategy.rules.layers_on_host
    once = ("data",) if several and not _has_aux(model) else ()
    if strategy.mesh.shape["pipe"] == 1:
        return _Accumulated(graphdef, objective, strategy, count, once)
    layout = config.distributed
    table = make_table(
        layout.pipeline_schedule, strategy.mesh.shape["pipe"], count, layout.pipeline_chunks
    )
    validate(table)
    pipeline = Pipeline(
        Pieces(graphdef, objective),
        table,
        strategy.rules,
        strategy.gradient_shardings,
        divergent=strategy.stages_diverge,
        once=once,
    )
    return _Pipelined(pipeline, strategy, count)


def _has_aux(model: nnx.Module) -> bool:
    """Whether a model reports auxiliary scalars, which are no sums over tokens: halves of a batch do not add up."""
    graphdef, state = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def aux(state: Any, tokens: jax.Array) -> Any:
        whole: Any = nnx.merge(graphdef, state)
        return whole.hidden(tokens).aux

    return bool(jax.eval_shape(aux, state, tokens))


@dataclass(frozen=True)
class _Accumulated:
    """One microbatch after another on all devices.

    Gradients of the axes in `once` are added up on each device first, and over devices after the last microbatch:
    XLA would do it in every one, as it carries no partial sum round a loop.
    """

    graphdef: Any
    objective: Objective
    strategy: Strategy
    count: int
    once: tuple[str, ...]

    def __call__(self, params: Any, batch: Batch, inputs: StepInputs) -> tuple[Any, Sums]:
        # Dropout draws for whole arrays, so that its mask does not depend on how many devices share them.
        if not self.once or inputs.dropout_key is not None:
            return self._gradients(params, batch, inputs)

        def local(params: Any, batch: Batch, inputs: StepInputs) -> tuple[Any, Sums]:
            with noise.folded(jax.lax.axis_index(self.once)):  # every device has rows of its own
                return jax.lax.psum(self._gradients(params, batch, inputs), self.once)

        whole, rows = PartitionSpec(), PartitionSpec(self.once)
        run = jax.shard_map(
            local,
            mesh=self.strategy.mesh,
            in_specs=(whole, rows, whole),
            out_specs=whole,
            axis_names=set(self.once),
            check_vma=False,
        )
        return run(params, batch, inputs)

    def _gradients(self, params: Any, batch: Batch, inputs: StepInputs) -> tuple[Any, Sums]:
        def scaled(params: Any, micro: Batch, index: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            key = None if inputs.dropout_key is None else jax.random.fold_in(inputs.dropout_key, index)
            with noise.folded(index):
                total, sums = self.objective(nnx.merge(self.graphdef, params), micro, inputs.controls, key)
            return total * inputs.scale, sums

        gradient = jax.grad(scaled, has_aux=True)

        def pinned(params: Any, micro: Batch, index: jax.Array) -> tuple[Any, Sums]:
            grads, sums = gradient(params, micro, index)
            return self.strategy.pin_gradients(grads), sums

        if self.count == 1:
            return pinned(params, batch, jnp.int32(0))
        micros = {k: v.swapaxes(0, 1) for k, v in _columns(batch, self.count).items()}

        def add(carry: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return self._add(carry, pinned(params, *xs)), None

        first = jax.tree.map(lambda v: v[0], micros)
        shapes = jax.eval_shape(gradient, params, first, jnp.int32(0))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        start = to_host(self.strategy.pin_gradients(zeros[0]), self.strategy.param_kinds), zeros[1]
        return jax.lax.scan(add, start, (micros, jnp.arange(self.count)))[0]

    def _add(self, total: tuple[Any, Sums], more: tuple[Any, Sums]) -> tuple[Any, Sums]:
        if not self.strategy.rules.layers_on_host:
            return jax.tree.map(jnp.add, total, more)
        (grads, sums), (other, further) = total, more
        added = {
            name: add_layers(grads[name], other[name], self.strategy.param_kinds[name])
            if name == "layers"
            else jax.tree.map(jnp.add, grads[name], other[name])
            for name in grads
        }
        return added, jax.tree.map(jnp.add, sums, further)

    def sums(self, params: Any, batch: Batch, inputs: StepInputs) -> Sums:
        return self.objective(nnx.merge(self.graphdef, params), batch, inputs.controls, None)[1]


@dataclass(frozen=True)
class _Pipelined:
    """Microbatches through pipeline stages."""

    pipeline: Pipeline
    strategy: Strategy
    count: int

    def __call__(self, params: Any, batch: Batch, inputs: StepInputs) -> tuple[Any, Sums]:
        grads, sums = self.pipeline.gradients(params, _columns(batch, self.count), inputs)
        return self.strategy.pin_gradients(grads), sums

    def sums(self, params: Any, batch: Batch, inputs: StepInputs) -> Sums:
        return self.pipeline.sums(params, _columns(batch, self.count), inputs)


def _columns(batch: Batch, count: int) -> dict[str, jax.Array]:
    """[B, T] -> [B / count, count, T]: microbatch m is column m, and every device keeps rows of its own in each."""
    return {k: v.reshape(v.shape[0] // count, count, *v.shape[1:]) for k, v in batch.items()}
