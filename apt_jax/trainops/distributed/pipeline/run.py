"""Runs a tick table: one SPMD program in which every pipeline stage does its own row of the table.

A `shard_map` makes the mesh axis `pipe` manual and leaves the others to XLA, so that stages compose with
data, fsdp, tensor and context parallelism. One scan runs over ticks; in each, the stages do their slots in
order, then one ring permute sends activations on and one sends cotangents back. Gradients are formed in
the scan (`jax.vjp` of one group of layers at a time, recomputed from its input), never by differentiating it:
memory is bounded by the table's stash, not by the number of microbatches.

Every device takes the same branches: an operation that any stage has in a tick is run by all of them, and
idle stages drop the result. They would wait for the others anyway, and a permute in a branch that only some
devices take is matched with the wrong partner: XLA:CPU does so without a sign.
Where no permute can be among them (`divergent`), a stage does only its own where that saves time: the embedding,
the loss, and slots that hold different kinds of work for different stages, as zero-bubble's do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from apt_jax.core import noise
from apt_jax.core.logical import AxisRules, pin
from apt_jax.trainops.distributed.pipeline.deferred import Path, defer, sink_shapes, weight_gradients
from apt_jax.trainops.distributed.pipeline.stage import Flow, Pieces, StepInputs
from apt_jax.trainops.distributed.pipeline.table import Op, TickTable

Tree = Any
_AXIS = "pipe"


@struct.dataclass
class _State:
    """What a stage carries from tick to tick; [K, …] are buffers the table numbers."""

    arrived: Flow  # from the stage before
    returned: Flow  # cotangent from the stage after
    stash: Flow  # [K, …] inputs of microbatches on their way
    deferred: Mapping[Path, tuple[jax.Array, jax.Array]]  # [K', Lc, …] weight gradients to come
    d_layers: Tree  # [v, Lc, …]
    d_rest: Tree
    sums: Mapping[str, jax.Array]


@struct.dataclass
class _Cell:
    """One slot of one tick, as one stage sees it."""

    mine: jax.Array  # bool: this stage has the operation
    first: jax.Array  # bool: … on the model's first group of layers
    last: jax.Array
    any_first: jax.Array  # bool: some stage has; equal on all devices
    any_last: jax.Array
    micro: jax.Array
    chunk: jax.Array
    stash: jax.Array
    deferred: jax.Array


@dataclass(frozen=True)
class Pipeline:
    """Gradients and sums of a step by pipeline stages.

    Attributes:
      pieces: the model.
      table: what each stage does in each tick.
      rules: in force while traced.
      chunks: groups of layers per stage, v. Parameters under `layers` have leading axes [L] for v = 1, else
        [v, L / v], so that each device's shard along the axis named "layers" is what its stage needs.
      gradient_shardings: a tree as the parameters.
      divergent: stages may take branches of their own; only where no sequence is cut over devices.
      once: further axes whose gradients are summed after the last tick; XLA would do it in every tick, as it
        carries no partial sum round a loop. Not with dropout, whose masks are drawn for whole arrays.
    """

    pieces: Pieces
    table: TickTable
    rules: AxisRules
    gradient_shardings: Tree
    divergent: bool
    once: tuple[str, ...] = ()

    @property
    def chunks(self) -> int:
        return self.table.chunks

    def gradients(self, params: Tree, micros: Mapping[str, jax.Array], inputs: StepInputs) -> tuple[Tree, Tree]:
        """Gradients of the sum of all microbatches' scaled objectives, and the sums to report.

        Args:
          params: nested dict.
          micros: batch arrays [B / M, M, T]: microbatch m is column m, so that nothing is copied.
          inputs: the step's.
        """
        specs = self._specs(params)
        once = self.once if inputs.dropout_key is None else ()
        body = partial(self._body, self.table, once)
        return self._over_stages(body, once, specs, (specs, PartitionSpec()))(params, micros, inputs)

    def sums(self, params: Tree, micros: Mapping[str, jax.Array], inputs: StepInputs) -> Tree:
        """The sums to report, forward only."""
        body = partial(self._body, _forward_only(self.table), self.once)
        run = self._over_stages(lambda *args: body(*args)[1], self.once, self._specs(params), PartitionSpec())
        return run(params, micros, inputs)

    def _specs(self, params: Tree) -> dict[str, PartitionSpec]:
        layers = PartitionSpec(_AXIS) if self.chunks == 1 else PartitionSpec(None, _AXIS)
        return {name: layers if name == "layers" else PartitionSpec() for name in params}

    def _over_stages(
        self, body: Callable[..., Any], once: tuple[str, ...], specs: Any, out: Any
    ) -> Callable[..., Any]:
        return jax.shard_map(
            body,
            mesh=self.rules.mesh,
            in_specs=(specs, PartitionSpec(once or None), PartitionSpec()),
            out_specs=out,
            axis_names={_AXIS, *once},
            check_vma=False,
        )

    def _body(
        self, table: TickTable, once: tuple[str, ...], params: Tree, micros: Tree, inputs: StepInputs
    ) -> tuple[Tree, Tree]:
        stage = _Stage(self, table, params, micros, inputs)
        rows = {name: jnp.asarray(getattr(table, name)) for name in ("op", "micro", "chunk", "stash", "deferred")}
        with noise.folded(jax.lax.axis_index(once)) if once else nullcontext():  # every device has rows of its own
            state, _ = jax.lax.scan(stage.tick, stage.start(), rows)
        d_layers = state.d_layers if self.chunks > 1 else jax.tree.map(lambda g: g[0], state.d_layers)
        d_layers = jax.lax.psum(d_layers, once) if once else d_layers
        d_rest, sums = jax.lax.psum((state.d_rest, state.sums), (_AXIS, *once))
        return {**d_rest, "layers": d_layers}, sums


class _Stage:
    """One device's view of a step."""

    def __init__(self, pipeline: Pipeline, table: TickTable, params: Tree, micros: Tree, inputs: StepInputs):
        self.pieces, self.table, self.divergent = pipeline.pieces, table, pipeline.divergent
        self.micros, self.inputs = micros, inputs
        self.index = jax.lax.axis_index(_AXIS)
        self.rest = {name: value for name, value in params.items() if name != "layers"}
        stacked = params["layers"]
        self.layers = stacked if pipeline.chunks > 1 else jax.tree.map(lambda w: w[None], stacked)
        self.depth = jax.tree.leaves(self.layers)[0].shape[1]
        self.trains = any(op is not Op.FORWARD for ops in table.slot_ops for op in ops)
        self._shardings = pipeline.gradient_shardings
        first = jax.tree.map(lambda a: a[:, 0], micros)
        self._flow = jax.eval_shape(self.pieces.begin, self.rest, self._chunk(0), first)
        self._sums = jax.eval_shape(self._loss, self.rest, self._flow, first)[1]
        self._sinks = self._sink_shapes(first) if table.deferred_size else {}

    def start(self) -> _State:
        """Empty buffers and zero sums."""
        table, flow = self.table, _zeros(self._flow)
        pinned = self._pin if self.trains else lambda tree: tree
        gradients = {**self.rest, "layers": self.layers} if self.trains else {"layers": {}}
        zeros = pinned(jax.tree.map(jnp.zeros_like, gradients))
        return _State(
            arrived=flow,
            returned=flow,
            stash=_zeros(self._flow, table.stash_size if self.trains else 0),
            deferred=_zeros(self._sinks, table.deferred_size),
            d_layers=zeros["layers"],
            d_rest={name: value for name, value in zeros.items() if name != "layers"},
            sums=_zeros(self._sums),
        )

    def tick(self, state: _State, row: Mapping[str, jax.Array]) -> tuple[_State, None]:
        """All slots of a tick, then the exchange with both neighbours."""
        arrived = state.arrived
        sent = {Op.FORWARD: arrived, Op.BACKWARD: state.returned}
        run = {
            Op.FORWARD: self._forward,
            Op.BACKWARD: partial(self._backward, split=False),
            Op.INPUT_GRAD: partial(self._backward, split=True),
            Op.WEIGHT_GRAD: self._weights,
        }
        for slot, ops in enumerate(self.table.slot_ops):
            for op in ops:
                cell = self._cell(row, slot, op)
                # One kind of work in a slot takes as long for one stage as for all.
                alone = self.divergent and len(ops) > 1
                busy = cell.mine if alone else jnp.any(row["op"][:, slot] == op)
                way = Op.FORWARD if op is Op.FORWARD else Op.BACKWARD
                work = partial(run[op], cell)
                with noise.folded(cell.micro):
                    state, sent[way] = jax.lax.cond(busy, work, lambda s, out: (s, out), state, sent[way])
        stages = self.table.stages
        on = [(i, (i + 1) % stages) for i in range(stages)]
        back = [(j, i) for i, j in on]
        return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            arrived=jax.lax.ppermute(sent[Op.FORWARD], _AXIS, on),
            returned=jax.lax.ppermute(sent[Op.BACKWARD], _AXIS, back) if self.trains else state.returned,
        ), None

    def _cell(self, row: Mapping[str, jax.Array], slot: int, op: Op) -> _Cell:
        stages, chunks = self.table.stages, self.table.chunks
        mine = row["op"][self.index, slot] == op
        at = {name: jnp.maximum(row[name][self.index, slot], 0) for name in ("micro", "chunk", "stash", "deferred")}
        return _Cell(
            mine=mine,
            first=mine & (self.index == 0) & (at["chunk"] == 0),
            last=mine & (self.index == stages - 1) & (at["chunk"] == chunks - 1),
            any_first=(row["op"][0, slot] == op) & (row["chunk"][0, slot] == 0),
            any_last=(row["op"][stages - 1, slot] == op) & (row["chunk"][stages - 1, slot] == chunks - 1),
            **at,
        )

    def _forward(self, cell: _Cell, state: _State, sent: Flow) -> tuple[_State, Flow]:
        micro, layers = self._micro(cell), self._chunk(cell.chunk)
        flow = self._only(
            cell.first, cell.any_first, lambda _: self.pieces.begin(self.rest, layers, micro), state.arrived
        )
        model = self.pieces.model(self.rest, layers)
        sent = self.pieces.advance(model, flow, self._first_layer(cell), micro, cell.micro, self.inputs)
        if self.trains:
            stash = _write(state.stash, cell.stash, flow, cell.mine)
            return state.replace(stash=stash), sent  # pyright: ignore[reportAttributeAccessIssue]

        def add(sums: Tree) -> Tree:
            return jax.tree.map(jnp.add, sums, self._loss(self.rest, sent, micro)[1])

        sums = self._only(cell.last, cell.any_last, add, state.sums)
        return state.replace(sums=sums), sent  # pyright: ignore[reportAttributeAccessIssue]

    def _backward(self, cell: _Cell, state: _State, sent: Flow, *, split: bool) -> tuple[_State, Flow]:
        del sent
        micro, layers = self._micro(cell), self._chunk(cell.chunk)
        flow = jax.tree.map(lambda a: a[cell.stash], state.stash)
        small, large = _partition(layers, self._sinks if split else {})

        def run(small: Tree, flow: Flow, sinks: Tree) -> Flow:
            model = self.pieces.model(self.rest, _join(small, large))
            defer(model.layers, sinks)
            return self.pieces.advance(model, flow, self._first_layer(cell), micro, cell.micro, self.inputs)

        out, pull = jax.vjp(run, small, flow, _zeros(self._sinks if split else {}))

        def loss(given: tuple[Flow, Tree, Tree]) -> tuple[Flow, Tree, Tree]:
            _, d_rest, sums = given
            grad = jax.grad(self._loss, argnums=(0, 1), has_aux=True)
            (d_tail, d_out), new = grad(self.rest, out, micro)
            return d_out, jax.tree.map(jnp.add, d_rest, d_tail), jax.tree.map(jnp.add, sums, new)

        d_out, d_rest, sums = self._only(
            cell.last, cell.any_last, loss, (state.returned, state.d_rest, state.sums)
        )
        d_small, d_flow, saved = pull(d_out)

        def embed(d_rest: Tree) -> Tree:
            _, pull = jax.vjp(lambda rest: self.pieces.begin(rest, layers, micro), self.rest)
            return jax.tree.map(jnp.add, d_rest, pull(d_flow)[0])

        d_rest = self._only(cell.first, cell.any_first, embed, d_rest)
        deferred = _write(state.deferred, cell.deferred, saved, cell.mine) if split else state.deferred
        return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            deferred=deferred,
            d_layers=self._add(state.d_layers, cell, d_small),
            d_rest=d_rest,
            sums=sums,
        ), d_flow

    def _weights(self, cell: _Cell, state: _State, sent: Flow) -> tuple[_State, Flow]:
        model = self.pieces.model(self.rest, self._chunk(cell.chunk))
        saved = jax.tree.map(lambda a: a[cell.deferred], state.deferred)
        gradients = {(*path, "kernel"): g for path, g in weight_gradients(model.layers, saved).items()}
        # Read before the next input gradients are written, or XLA copies all buffers in every tick.
        d_layers, deferred = jax.lax.optimization_barrier(
            (self._add(state.d_layers, cell, _unflatten(gradients)), state.deferred)
        )
        return state.replace(d_layers=d_layers, deferred=deferred), sent  # pyright: ignore[reportAttributeAccessIssue]

    def _add(self, total: Tree, cell: _Cell, new: Tree) -> Tree:
        """Adds the gradients that `new` holds to those of the cell's group of layers."""
        flat, where = _flatten(total), _flatten(self._shardings["layers"])
        lead = 0 if self.table.chunks == 1 else -1
        for path, g in _flatten(new).items():
            # Pinned by itself: else XLA sums it whole over fsdp, and cuts it when it is added.
            g = pin(g, where[path], lead)
            flat[path] = flat[path].at[cell.chunk].add(jnp.where(cell.mine, g, jnp.zeros_like(g)))
        return _unflatten(flat)

    def _only(self, mine: jax.Array, any_stage: jax.Array, work: Callable[[Any], Any], state: Any) -> Any:
        """`work(state)` where `mine`, else `state`."""
        if self.divergent:
            return jax.lax.cond(mine, work, lambda s: s, state)

        def masked(state: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(mine, new, old), work(state), state)

        return jax.lax.cond(any_stage, masked, lambda s: s, state)

    def _loss(self, rest: Tree, flow: Flow, micro: Tree) -> tuple[jax.Array, Tree]:
        return self.pieces.loss(rest, flow, self._chunk(0), micro, self.inputs)

    def _micro(self, cell: _Cell) -> Tree:
        return jax.tree.map(lambda a: a[:, cell.micro], self.micros)

    def _chunk(self, chunk: int | jax.Array) -> Tree:
        return jax.tree.map(lambda w: w[chunk], self.layers)

    def _first_layer(self, cell: _Cell) -> jax.Array:
        return (cell.chunk * self.table.stages + self.index) * self.depth

    def _sink_shapes(self, micro: Tree) -> dict[Path, tuple[Any, Any]]:
        model = self.pieces.model(self.rest, self._chunk(0))

        def run() -> Flow:
            flow = _zeros(self._flow)
            return self.pieces.advance(model, flow, jnp.int32(0), micro, jnp.int32(0), self.inputs)

        return sink_shapes(model.layers, run)

    def _pin(self, gradients: Tree) -> Tree:
        """Pins each gradient's sharding over the axes that XLA manages."""
        lead = {"layers": 1} if self.table.chunks == 1 else {}
        return {
            name: pin(value, self._shardings[name], lead.get(name, 0)) for name, value in gradients.items()
        }


def _zeros(shapes: Tree, count: int | None = None) -> Tree:
    lead = () if count is None else (count,)
    return jax.tree.map(lambda s: jnp.zeros((*lead, *s.shape), s.dtype), shapes)


def _write(buffers: Tree, index: jax.Array, value: Tree, mine: jax.Array) -> Tree:
    """Buffer `index` becomes `value` where `mine`."""
    return jax.tree.map(lambda b, x: b.at[index].set(jnp.where(mine, x, b[index])), buffers, value)


def _forward_only(table: TickTable) -> TickTable:
    """The forward operations of a table alone."""
    op = np.where(table.op == Op.FORWARD, table.op, Op.IDLE).astype(np.int32)
    ticks = int(np.flatnonzero((op != Op.IDLE).any(axis=(1, 2))).max()) + 1
    cut = {name: getattr(table, name)[:ticks] for name in ("micro", "chunk", "stash", "deferred")}
    return replace(table, op=op[:ticks], **cut, stash_size=0, deferred_size=0)


def _partition(layers: Tree, sinks: Mapping[Path, Any]) -> tuple[Tree, Tree]:
    """Parameters whose gradient is formed at once, and the kernels whose gradient waits."""
    flat = _flatten(layers)
    later = {(*path, "kernel") for path in sinks}
    return (
        _unflatten({path: w for path, w in flat.items() if path not in later}),
        _unflatten({path: w for path, w in flat.items() if path in later}),
    )


def _join(a: Tree, b: Tree) -> Tree:
    return _unflatten({**_flatten(a), **_flatten(b)})


def _flatten(tree: Tree, path: Path = ()) -> dict[Path, Any]:
    flat: dict[Path, Any] = {}
    for name, value in tree.items():
        inside = (*path, str(name))
        flat |= _flatten(value, inside) if isinstance(value, Mapping) else {inside: value}
    return flat


def _unflatten(flat: Mapping[Path, Any]) -> Tree:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree
