"""Collectives of a compiled program: kind, mesh axes, bytes and how often each runs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from apt_jax.trainops.distributed.collectives.groups import (
    Groups,
    group_axes,
    pair_axes,
    parse_groups,
    parse_pairs,
    raw,
)
from apt_jax.trainops.distributed.collectives.hlo import (
    Computation,
    Instruction,
    Program,
    ProgramError,
    parse,
    shape_bytes,
    tuple_parts,
)
from apt_jax.trainops.distributed.collectives.trips import trip_count

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
# A TPU program writes a reduce-scatter as a fusion of an all-reduce and a slice, with this name.
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"
# And an asynchronous collective as fusions that start it, run beside it and end it: each holds a copy of it.
_CHAIN = re.compile(r'chain_id="(\w+)"')


@dataclass(frozen=True)
class Collective:
    """One collective instruction of a compiled program.

    Attributes:
      kind: one of KINDS, without `-start`.
      axes: mesh axes it communicates over, in mesh order; () if no device sends to another; `("?",)` where
        its groups are not whole slices of the mesh along axes.
      bytes: payload of one device in one execution, without layout padding; parts of a combined collective
        added up. all-gather: the gathered result. reduce-scatter: the whole operand before it is scattered.
        all-reduce, all-to-all, collective-permute, collective-broadcast: the operand. ragged-all-to-all: the
        buffer sent from, an upper bound, since the sizes sent are data. What crosses a link follows by kind:
        a ring moves (n-1)/n of it, 2(n-1)/n for an all-reduce.
      count: executions per run of the program.
      op_name: of the jax operation it came from, "" if not recorded.
      conditional: it runs only where a branch is taken; `count` supposes that it always is.
      groups: positions of devices, as XLA grouped them; (source, target) pairs for a collective-permute.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    count: int
    op_name: str
    conditional: bool
    groups: tuple[tuple[int, ...], ...]


def read_collectives(
    hlo_text: str, mesh_shape: Mapping[str, int], unknown_trips: int | None = None
) -> list[Collective]:
    """Reads the collectives of an optimized program, in program order.

    Args:
      hlo_text: `lowered.compile().as_text()`, of any platform.
      mesh_shape: size by axis of the mesh the program was compiled for, all axes, in mesh order.
      unknown_trips: executions to suppose for a loop whose number depends on data; None: such a loop is an
        error if it has collectives.

    Raises:
      ProgramError: not a compiled program, another mesh, or a loop of unknown length with collectives.
    """
    program = parse(hlo_text)
    runs: dict[tuple[str, str, bool], int] = {}
    _count(program, program.computations[program.entry], 1, False, runs, unknown_trips)
    found, chains = [], set[tuple[str, str]]()
    for (where, name, conditional), count in runs.items():
        computation = program.computations[where]
        instruction = computation.instructions[name]
        if (chain := _CHAIN.search(instruction.attributes)) is not None:
            key = chain[1], instruction.attribute("channel_id") or ""
            if key in chains:
                continue
            chains.add(key)
        one = _read(computation, instruction, mesh_shape)
        found.append(dataclasses.replace(one, count=count, conditional=conditional))
    return found


def _kind(instruction: Instruction) -> str | None:
    name = instruction.opcode.removesuffix("-start")
    return name if name in KINDS else None


def _count(
    program: Program,
    computation: Computation,
    times: int,
    conditional: bool,
    runs: dict[tuple[str, str, bool], int],
    unknown_trips: int | None,
) -> None:
    """Adds `times` executions of `computation` to `runs`, which is by (computation, instruction, conditional)."""
    for instruction in computation.instructions.values():
        if _kind(instruction) is not None:
            key = computation.name, instruction.name, conditional
            runs[key] = runs.get(key, 0) + times
            continue
        for called, factor, branch in _calls(program, computation, instruction, unknown_trips):
            _count(program, called, times * factor, conditional or branch, runs, unknown_trips)


def _calls(
    program: Program, computation: Computation, instruction: Instruction, unknown_trips: int | None
) -> list[tuple[Computation, int, bool]]:
    """(computation, executions, whether only in a branch) for each computation that `instruction` runs."""

    def named(*keys: str) -> list[Computation]:
        return [program.computations[n] for key in keys for n in instruction.called(key) if n in program.computations]

    match instruction.opcode:
        case "while":
            body, condition = named("body"), named("condition")
            if not any(_communicates(program, called) for called in body + condition):
                return []
            trips = trip_count(program, computation, instruction)
            trips = unknown_trips if trips is None else trips
            if trips is None:
                raise ProgramError(
                    f"loop {instruction.name}: it has collectives and its length depends on data; "
                    "pass unknown_trips to suppose one"
                )
            return [(c, trips, False) for c in body] + [(c, trips + 1, False) for c in condition]
        case "conditional":
            branches = named("branch_computations", "true_computation", "false_computation")
            return [(c, 1, True) for c in branches]
        case "call" | "fusion" | "async-start" | "custom-call":
            return [(c, 1, False) for c in named("calls", "to_apply", "called_computations")]
    return []


def _communicates(program: Program, computation: Computation) -> bool:
    runs: dict[tuple[str, str, bool], int] = {}
    _count(program, computation, 1, False, runs, unknown_trips=1)
    return bool(runs)


def _read(computation: Computation, instruction: Instruction, mesh_shape: Mapping[str, int]) -> Collective:
    kind = _kind(instruction)
    assert kind is not None
    if kind == "all-reduce" and computation.name.startswith(_FUSED_REDUCE_SCATTER):
        kind = "reduce-scatter"
    groups: Groups
    if (pairs := instruction.attribute("source_target_pairs")) is not None:
        groups, axes = (found := parse_pairs(pairs)), pair_axes(found, mesh_shape)
    else:
        text = _groups_text(instruction)
        groups = parse_groups(text, math.prod(mesh_shape.values()))
        axes = group_axes(groups, mesh_shape)
    name = (instruction.attribute("metadata") or "").partition('op_name="')[2].partition('"')[0]
    return Collective(kind, axes, _payload(kind, computation, instruction), 1, name, False, raw(groups))


def _groups_text(instruction: Instruction) -> str:
    """All of `replica_groups=`: the iota and mesh forms go on after their first bracket."""
    text = instruction.attributes.partition("replica_groups=")[2]
    return text if text[:1] in ("[", "m") else instruction.attribute("replica_groups") or "{}"


def _payload(kind: str, computation: Computation, instruction: Instruction) -> int:
    if kind == "all-gather":
        parts = tuple_parts(instruction.shape)
        # A start yields (operands, results, …); a plain one yields its results.
        started = instruction.opcode.endswith("-start") and len(parts) > 1
        return shape_bytes(parts[1] if started else instruction.shape)
    sent = [made for name in instruction.operands if (made := computation.instructions.get(name)) is not None]
    in_place = instruction.attribute("slice_sizes") is not None  # the other operands are its target and offsets
    if kind == "ragged-all-to-all" or in_place:
        sent = sent[:1]
    return sum(shape_bytes(made.shape) for made in sent)
