"""Collectives of a step in closed form: what `collectives.read_collectives` finds in the compiled program."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from apt_jax.core.config import Config
from apt_jax.trainops.distributed.collectives import Collective
from apt_jax.trainops.distributed.pipeline.table import TickTable, make_table
from apt_jax.trainops.plan.search.places import ring
from apt_jax.vgpu.scheduler.layer import FLOAT
from apt_jax.vgpu.scheduler.step import Step

_MATRICES = 7  # of a layer, each gathered by itself
_RECOMPUTED = ("attention", "full", "offload")  # policies that form attention's output projection anew


def collectives(step: Step, config: Config, vendor: str) -> Iterator[Collective]:
    """Everything that devices send each other in one optimizer step."""
    yield from _tensor(step)
    yield from _weights(step)
    yield from _gradients(step, scatters=vendor != "cpu")
    yield from _context(step, config.training.distributed.context_method)
    yield from _pipe(step)


def tick_table(step: Step) -> TickTable | None:
    """The schedule of the stages; None without any."""
    return _table(step.schedule, step.mesh.pipe, step.micros, step.chunks) if step.mesh.pipe > 1 else None


@lru_cache(maxsize=512)
def _table(schedule: str, stages: int, microbatches: int, chunks: int) -> TickTable:
    return make_table(schedule, stages, microbatches, chunks)


def _one(
    kind: str, axes: tuple[str, ...], size: float, count: int, pairs: tuple[tuple[int, int], ...] = ()
) -> Collective:
    return Collective(kind, axes, int(size), count, "", False, pairs)


def _forwards(step: Step) -> int:
    """Forward passes of a layer: a stage goes forward again from its stored input."""
    return 2 if step.mesh.pipe > 1 else 1


def _tensor(step: Step) -> Iterator[Collective]:
    """Sums of partial products: two per layer going forward; going back one for each projection of the stream.

    Cut along the sequence they become a reduce-scatter and an all-gather of the same bytes.
    """
    if step.mesh.tensor == 1:
        return
    stream = step.e * step.t * step.w.D
    layers = step.micros * step.layers_held
    anew = 1 if step.remat in _RECOMPUTED else 0
    back = 6 if step.w.rank else 5
    yield _one("all-reduce", ("tensor",), stream, layers * (2 * _forwards(step) + anew + back) + 2 * step.micros)
    if step.w.rank:
        yield _one("all-reduce", ("tensor",), step.e * step.t * step.w.rank, layers)


def _weights(step: Step) -> Iterator[Collective]:
    """Weights cut along fsdp: whole for every use of a microbatch; with zero 1 and 2 once, after the update."""
    mesh = step.mesh
    if mesh.fsdp == 1:
        return
    layers, rest = step.held(layered=True, without=("fsdp",)), step.held(layered=False, without=("fsdp",))
    if mesh.zero_stage < 3:
        yield _one("all-gather", ("fsdp",), FLOAT * (layers + rest), 1)
        return
    uses = step.micros * (1 + _forwards(step))
    each = _MATRICES * step.layers_held
    yield _one("all-gather", ("fsdp",), step.e * layers / each, uses * each)
    yield _one("all-gather", ("fsdp",), step.e * step.w.D * step.V, step.micros)
    # The table is not gathered: what is looked up is sent, and its gradient back.
    yield _one("all-to-all", ("fsdp",), step.e * step.t * step.w.D, 2 * step.micros)


def _gradients(step: Step, scatters: bool) -> Iterator[Collective]:
    """Sums over devices with rows of their own: along fsdp and context in every microbatch, along data once."""
    mesh, accumulates = step.mesh, step.micros > 1
    cut = ("fsdp",) if mesh.zero_stage < 2 else ()
    layers, head = step.held(layered=True, without=("fsdp",)), step.w.D * step.V
    if mesh.fsdp > 1:
        kind = "reduce-scatter" if scatters and mesh.zero_stage >= 2 else "all-reduce"
        yield _one(kind, ("fsdp",), step.e * layers / step.layers_held, step.micros * step.layers_held)
        yield _one(kind, ("fsdp",), FLOAT * head, step.micros)
    mine = step.held(layered=True, without=cut)
    tables = step.held(layered=False, without=("pipe", *cut))
    # Table and head are one array where they are tied, but each has a gradient; a microbatch adds them up.
    twice = 2 if len([t for t in step.tensors if not t.layered and len(t.shape) > 1]) == 1 else 1
    if mesh.context > 1:
        yield _one("all-reduce", ("context",), FLOAT * (mine + twice * tables), step.micros)
    if mesh.data > 1:
        once = tables if accumulates or mesh.fsdp > 1 else twice * tables
        if mesh.pipe == 1:
            mine += once
        yield _one("all-reduce", ("data",), FLOAT * mine, 1)
    if mesh.pipe > 1:
        axes = ("pipe", "data") if mesh.data > 1 else ("pipe",)
        yield _one("all-reduce", axes, FLOAT * tables, 1)


def _context(step: Step, method: str) -> Iterator[Collective]:
    """Keys and values of the other devices, and their gradients."""
    size, axes = step.mesh.context, ("context",)
    if size == 1:
        return
    calls = step.micros * step.layers_held
    forwards = _forwards(step) + (step.remat in ("dots", *_RECOMPUTED))
    keys, stream = step.e * step.t * step.KV, step.e * step.t * step.Q
    if method == "ring":
        hops = 2 * (size - 1)  # keys and values
        yield _permute(step, "context", keys, calls * (forwards + 1) * hops)
        yield _permute(step, "context", keys * FLOAT / step.e, calls * 2 * size)  # their gradients, once round
    elif method == "allgather":
        yield _one("all-gather", axes, size * keys, calls * 2 * (forwards + 1))
        yield _one("reduce-scatter", axes, size * keys, calls * 2)
    else:  # ulysses: queries, keys, values there, the output back; and the same of gradients
        yield _one("all-to-all", axes, stream, calls * 2 * (forwards + 1))
        yield _one("all-to-all", axes, keys, calls * 2 * (forwards + 1))


def _pipe(step: Step) -> Iterator[Collective]:
    """Activations on and cotangents back in every tick; what belongs to no layer is whole on every stage."""
    table = tick_table(step)
    if table is None:
        return
    yield _permute(step, "pipe", step.e * step.s * step.w.D, 2 * table.ticks)
    yield _one("all-gather", ("pipe",), FLOAT * step.held(layered=False, without=("pipe",)), 1)


def _permute(step: Step, axis: str, size: float, count: int) -> Collective:
    return _one("collective-permute", (axis,), size, count, _ring(step, axis))


def _ring(step: Step, axis: str) -> tuple[tuple[int, int], ...]:
    m = step.mesh
    return _rings((m.pipe, m.data, m.fsdp, m.expert, m.context, m.tensor), axis)


@lru_cache(maxsize=256)
def _rings(shape: tuple[int, ...], axis: str) -> tuple[tuple[int, int], ...]:
    from apt_jax.core.layout import MESH_AXES

    return ring(dict(zip(MESH_AXES, shape, strict=True)), axis)
