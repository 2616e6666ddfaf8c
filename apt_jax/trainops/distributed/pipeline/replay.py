"""Replays a tick table and finds what no stage could do: a value that is not there, or work left over."""

from __future__ import annotations

import numpy as np

from apt_jax.trainops.distributed.pipeline.table import NOTHING, Op, TickTable


def validate(table: TickTable) -> None:
    """Replays the table and returns if every value is there when it is read, and all work gets done.

    Raises:
      ValueError: the first fault, one line with tick, stage and slot.
    """
    arrays = (table.op, table.micro, table.chunk, table.stash, table.deferred)
    shape = (table.ticks, table.stages, table.slots)
    if any(array.shape != shape or array.dtype != np.int32 for array in arrays):
        raise ValueError(f"pipeline table '{table.schedule}': not all arrays are int32 [ticks, stages, slots] {shape}")
    replay = _Replay(table)
    for tick, stage, slot in np.ndindex(*table.op.shape):
        if stage == slot == 0:
            replay.permute()
        if fault := replay.run(stage, *(int(array[tick, stage, slot]) for array in arrays)):
            raise ValueError(f"pipeline table '{table.schedule}': tick {tick}, stage {stage}, slot {slot}: {fault}")
    for stage in range(table.stages):
        missing = table.microbatches * table.chunks - len(replay.forwards[stage])
        left = (missing, len(replay.inputs[stage]), len(replay.owed[stage]))
        if any(left):
            raise ValueError(
                f"pipeline table '{table.schedule}': at the end stage {stage} lacks {left[0]} forwards, "
                f"{left[1]} backwards and {left[2]} weight gradients"
            )


class _Replay:
    """What the stages hold and receive; a piece of work is (microbatch, virtual stage)."""

    def __init__(self, table: TickTable):
        self._table = table
        self.forwards: list[set[tuple[int, int]]] = [set() for _ in range(table.stages)]
        self.inputs: list[dict[int, tuple[int, int]]] = [{} for _ in range(table.stages)]  # buffer → piece
        self.owed: list[dict[int, tuple[int, int]]] = [{} for _ in range(table.stages)]
        self._arrived: dict[tuple[int, int], tuple[int, int]] = {}  # (direction, stage) → piece it is for
        self._sent = self._arrived

    def permute(self) -> None:
        """Delivers what the last tick sent; what was delivered before is overwritten."""
        self._arrived, self._sent = self._sent, {}

    def run(self, stage: int, op: int, micro: int, chunk: int, stash: int, deferred: int) -> str:
        """Does one slot's op; returns what is wrong with it, or an empty string."""
        table = self._table
        if op == Op.IDLE:
            return "" if micro == chunk == stash == deferred == NOTHING else "an idle slot names something"
        if op not in tuple(Op):
            return f"there is no op {op}"
        if not (0 <= micro < table.microbatches and 0 <= chunk < table.chunks):
            return f"there is no microbatch {micro} of chunk {chunk}"
        if not _names(stash, table.stash_size, op != Op.WEIGHT_GRAD):
            return f"{Op(op).name} cannot have stash buffer {stash} of {table.stash_size}"
        if not _names(deferred, table.deferred_size, op in (Op.INPUT_GRAD, Op.WEIGHT_GRAD)):
            return f"{Op(op).name} cannot have deferred buffer {deferred} of {table.deferred_size}"
        piece = (micro, chunk * table.stages + stage)
        if op == Op.FORWARD:
            return self._forward(stage, piece, stash)
        if op == Op.WEIGHT_GRAD:
            return "" if self.owed[stage].pop(deferred, None) == piece else f"deferred buffer {deferred} holds another"
        if op == Op.INPUT_GRAD and self.owed[stage].setdefault(deferred, piece) != piece:
            return f"deferred buffer {deferred} is still in use"
        return self._backward(stage, piece, stash)

    def _forward(self, stage: int, piece: tuple[int, int], stash: int) -> str:
        micro, virtual = piece
        if virtual > 0 and self._arrived.get((1, stage)) != piece:
            return f"the activation of microbatch {micro} has not just arrived"
        if piece in self.forwards[stage]:
            return f"a second forward of microbatch {micro}"
        if stash in self.inputs[stage]:
            return f"stash buffer {stash} is still in use"
        self.forwards[stage].add(piece)
        self.inputs[stage][stash] = piece
        return self._send(1, stage, (micro, virtual + 1))

    def _backward(self, stage: int, piece: tuple[int, int], stash: int) -> str:
        micro, virtual = piece
        if self.inputs[stage].pop(stash, None) != piece:
            return f"stash buffer {stash} does not hold the input of microbatch {micro}"
        if virtual < self._table.virtual_stages - 1 and self._arrived.get((-1, stage)) != piece:
            return f"the cotangent of microbatch {micro} has not just arrived"
        return self._send(-1, stage, (micro, virtual - 1))

    def _send(self, direction: int, stage: int, piece: tuple[int, int]) -> str:
        key = (direction, (stage + direction) % self._table.stages)
        if key in self._sent:
            return "a second value for the same neighbour in one tick"
        self._sent[key] = piece
        return ""


def _names(buffer: int, size: int, used: bool) -> bool:
    """Whether the number is that of a buffer, or of none where none is used."""
    return 0 <= buffer < size if used else buffer == NOTHING
