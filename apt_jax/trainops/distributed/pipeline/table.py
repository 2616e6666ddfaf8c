"""Pipeline schedules as tables: which stage does what in which tick.

All stages go in lockstep. In a tick a stage runs its slots in order; then one ring permute sends
activations to the next stage and one sends cotangents to the previous stage, so that what is made
in tick t is used by the neighbour in tick t + 1, never later. The layers are cut into
stages * chunks virtual stages; number c = chunk * stages + stage.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np

from apt_jax.core.errors import ConfigError, unknown_name

NOTHING = -1  # in place of a microbatch, chunk or buffer


class Op(IntEnum):
    """What a slot does with one microbatch and one chunk."""

    IDLE = 0
    FORWARD = 1  # writes its stage input to the stash
    BACKWARD = 2  # gradients of input and weights; frees the stash's buffer, from which it recomputes
    INPUT_GRAD = 3  # the part others wait for; hands its buffer over to a deferred one
    WEIGHT_GRAD = 4  # the rest, at any later time; frees the deferred buffer


@dataclass(frozen=True, eq=False)
class TickTable:
    """A schedule; the arrays are int32 [ticks, stages, slots], -1 where they say nothing.

    Attributes:
      op: values of Op.
      micro, chunk: what the op works on.
      stash: buffer of the stage input that FORWARD writes and BACKWARD or INPUT_GRAD reads last.
      deferred: buffer that INPUT_GRAD writes and WEIGHT_GRAD reads last.
      stash_size, deferred_size: buffers a stage needs, the largest number over the stages.
    """

    schedule: str
    stages: int
    microbatches: int
    chunks: int
    op: np.ndarray
    micro: np.ndarray
    chunk: np.ndarray
    stash: np.ndarray
    deferred: np.ndarray
    stash_size: int
    deferred_size: int

    @property
    def ticks(self) -> int:
        return self.op.shape[0]

    @property
    def slots(self) -> int:
        return self.op.shape[2]

    @property
    def virtual_stages(self) -> int:
        """Pieces the layers are cut into."""
        return self.stages * self.chunks

    @property
    def slot_ops(self) -> tuple[tuple[Op, ...], ...]:
        """The ops each slot ever holds, without IDLE: the branches a program needs there."""
        return tuple(
            tuple(Op(op) for op in np.unique(self.op[:, :, slot]) if op != Op.IDLE) for slot in range(self.slots)
        )

    @property
    def stash_per_stage(self) -> tuple[int, ...]:
        """Stage inputs each stage holds at its fullest moment."""
        return tuple(int(top) + 1 for top in self.stash.max(axis=(0, 2)))

    @property
    def deferred_per_stage(self) -> tuple[int, ...]:
        """Weight gradients each stage owes at its fullest moment."""
        return tuple(int(top) + 1 for top in self.deferred.max(axis=(0, 2)))

    def to_json(self) -> dict[str, Any]:
        """All fields, arrays as nested lists, and the names of the ops by number."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
        return {**plain, "ticks": self.ticks, "slots": self.slots, "ops": [op.name for op in Op]}


@dataclass(frozen=True)
class _Place:
    tick: int
    stage: int
    slot: int
    op: Op
    micro: int
    chunk: int = 0


_Rule = Callable[[int, int, int], Iterator[_Place]]  # stages, microbatches, chunks → in any order


def make_table(schedule: str, stages: int, microbatches: int, chunks: int = 1) -> TickTable:
    """The table of a schedule for one optimizer step.

    Args:
      schedule: gpipe, 1f1b, interleaved or zero_bubble.
      stages: devices P in the ring.
      microbatches: M; any number, though interleaved leaves ticks idle unless P divides it.
      chunks: pieces of the model per stage; more than 1 for interleaved, and only there.

    Raises:
      ConfigError: an unknown schedule, or sizes that do not go with it.
    """
    _check(schedule, stages, microbatches, chunks)
    rule, slots = _RULES[schedule]
    places = sorted(rule(stages, microbatches, chunks), key=lambda place: (place.tick, place.slot))
    shape = (places[-1].tick + 1, stages, slots)
    op = np.full(shape, Op.IDLE, np.int32)
    micro, chunk, stash, deferred = (np.full(shape, NOTHING, np.int32) for _ in range(4))
    inputs = [_Buffers() for _ in range(stages)]
    owed = [_Buffers() for _ in range(stages)]
    for place in places:
        at, piece = (place.tick, place.stage, place.slot), (place.micro, place.chunk)
        op[at], (micro[at], chunk[at]) = place.op, piece
        if place.op == Op.FORWARD:
            stash[at] = inputs[place.stage].take(piece)
        elif place.op in (Op.BACKWARD, Op.INPUT_GRAD):
            stash[at] = inputs[place.stage].free(piece)
        if place.op == Op.INPUT_GRAD:
            deferred[at] = owed[place.stage].take(piece)
        elif place.op == Op.WEIGHT_GRAD:
            deferred[at] = owed[place.stage].free(piece)
    for array in (op, micro, chunk, stash, deferred):
        array.setflags(write=False)
    sizes = (max(buffers.size for buffers in group) for group in (inputs, owed))
    return TickTable(schedule, stages, microbatches, chunks, op, micro, chunk, stash, deferred, *sizes)


class _Buffers:
    """Numbers of buffers: the smallest free one is taken, so that `size` is the most ever in use."""

    def __init__(self) -> None:
        self.size = 0
        self._freed: list[int] = []
        self._held: dict[tuple[int, int], int] = {}

    def take(self, piece: tuple[int, int]) -> int:
        if self._freed:
            number = heapq.heappop(self._freed)
        else:
            number, self.size = self.size, self.size + 1
        self._held[piece] = number
        return number

    def free(self, piece: tuple[int, int]) -> int:
        number = self._held.pop(piece)
        heapq.heappush(self._freed, number)
        return number


def _gpipe(stages: int, microbatches: int, chunks: int) -> Iterator[_Place]:
    """All forwards, then all backwards; a stage holds M inputs."""
    for m in range(microbatches):
        for s in range(stages):
            yield _Place(m + s, s, 0, Op.FORWARD, m)
            yield _Place(microbatches + stages - 1 + m + stages - 1 - s, s, 1, Op.BACKWARD, m)


def _one_f_one_b(stages: int, microbatches: int, chunks: int) -> Iterator[_Place]:
    """A forward and a backward a tick, microbatches in groups of P that go through chunk after chunk.

    Stage s holds at most P * (chunks - 1) + 2 * (P - 1 - s) + 1 inputs, however many microbatches.
    """
    for m in range(microbatches):
        group, place = divmod(m, stages)
        for j in range(chunks):
            k = (group * chunks + j) * stages + place
            for s in range(stages):
                yield _Place(k + s, s, 0, Op.FORWARD, m, j)
                tick = k + (stages - 1 - s) + (stages * chunks - 1)
                yield _Place(tick, s, 1, Op.BACKWARD, m, chunks - 1 - j)


def _zero_bubble(stages: int, microbatches: int, chunks: int) -> Iterator[_Place]:
    """1F1B whose weight gradients fill the bubbles: ZB-H1 of arXiv:2401.10241, in lockstep.

    The slowest stage sets a tick's time, so a weight gradient is free where its stage runs no forward
    (slot 0), and costs where any stage runs it on top (slot 2). Slot 2 is closed while the pipeline
    fills, and for the P - 1 ticks in which the first stages run out of forwards: they go on with weight
    gradients in slot 0, the last stage lays its own aside for the ticks in which it is through.
    Stage s owes at most min(M, 2 * s + 1) weight gradients, and holds as many inputs as with 1F1B.
    """
    full, drained = 2 * stages - 2, microbatches + stages - 2  # first tick of all stages, last with a forward
    for s in range(stages):
        owed: deque[int] = deque()
        for tick in range(microbatches + full):
            forward, backward = tick - s, tick - full + s
            if 0 <= forward < microbatches:
                yield _Place(tick, s, 0, Op.FORWARD, forward)
            elif owed and tick >= full and (tick <= drained or backward >= microbatches):
                yield _Place(tick, s, 0, Op.WEIGHT_GRAD, owed.popleft())
            if 0 <= backward < microbatches:
                yield _Place(tick, s, 1, Op.INPUT_GRAD, backward)
                owed.append(backward)
            if owed and tick >= full and (tick >= drained or tick < microbatches - 1):
                yield _Place(tick, s, 2, Op.WEIGHT_GRAD, owed.popleft())


_RULES: dict[str, tuple[_Rule, int]] = {  # name -> rule, slots
    "gpipe": (_gpipe, 2),
    "1f1b": (_one_f_one_b, 2),
    "interleaved": (_one_f_one_b, 2),
    "zero_bubble": (_zero_bubble, 3),
}
SCHEDULES = tuple(_RULES)


def _check(schedule: str, stages: int, microbatches: int, chunks: int) -> None:
    where = "training.distributed"
    if schedule not in _RULES:
        raise ConfigError(f"{where}.pipeline_schedule: {unknown_name('schedule', schedule, _RULES)}")
    sizes = {
        f"{where}.pipeline_parallel": stages,
        f"{where}.pipeline_chunks": chunks,
        "training.gradient_accumulation_steps": microbatches,
    }
    for key, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{key}: {size} is too small for a pipeline; set it to 1 or more")
    if schedule == "interleaved" and chunks == 1:
        raise ConfigError(
            f"{where}.pipeline_schedule: interleaved needs several chunks per stage; set pipeline_chunks to 2 "
            "or more, or pipeline_schedule to 1f1b"
        )
    if schedule != "interleaved" and chunks > 1:
        raise ConfigError(
            f"{where}.pipeline_chunks: {chunks} chunks do not go with pipeline_schedule={schedule}; "
            "set pipeline_chunks to 1, or pipeline_schedule to interleaved"
        )
