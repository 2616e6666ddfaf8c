"""A schedule table as a text picture: a row per stage, a column per tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apt_jax.trainops.distributed.pipeline.cost import Costs, bubble, bubble_formula, table_time
from apt_jax.trainops.distributed.pipeline.table import Op, TickTable

if TYPE_CHECKING:
    from rich.text import Text

MAX_BLOCKS = 6  # of ticks, one below the other; of a longer picture the middle is left out
_LETTERS = {Op.FORWARD: "F", Op.BACKWARD: "B", Op.INPUT_GRAD: "B", Op.WEIGHT_GRAD: "W"}
_COLOURS = {"F": "green", "B": "cyan", "W": "yellow"}


def draw(table: TickTable, costs: Costs | None = None, width: int = 120) -> str:
    """The figures, the picture and its legend; plain lines, as a rule no longer than `width` characters."""
    cells = _cells(table)
    label = len(f"stage {table.stages - 1}") + 2
    blocks = _blocks([len(column[0]) for column in cells], width - label)
    lines = _figures(table, costs or Costs())
    if len(blocks) > MAX_BLOCKS:
        blocks = blocks[: MAX_BLOCKS // 2] + blocks[-(MAX_BLOCKS // 2) :]
    end = 0
    for start, stop in blocks:
        if start > end:
            lines += ["", f"… ticks {end} to {start - 1} are left out; --json has them all"]
        end = stop
        heads = [f"{tick:<{len(cells[tick][0])}}" for tick in range(start, stop)]
        lines += ["", f"{'tick':{label}}{' '.join(heads)}".rstrip()]
        lines += [
            f"{f'stage {s}':{label}}{' '.join(column[s] for column in cells[start:stop])}".rstrip()
            for s in range(table.stages)
        ]
    return "\n".join([*lines, "", *_legend(table)])


def coloured(picture: str) -> Text:
    """The picture for a `rich` console: forwards, backwards and weight gradients told apart by colour."""
    from rich.text import Text

    text = Text(picture, no_wrap=True, overflow="ignore")
    for letter, colour in _COLOURS.items():
        text.highlight_regex(rf"{letter}\d+[a-z]*", colour)
    text.highlight_regex("·", "dim")
    return text


def _cells(table: TickTable) -> list[list[str]]:
    """Texts [ticks][stages], of one length within a tick; slots that no stage uses are left out."""
    columns = []
    for tick in range(table.ticks):
        used = [slot for slot in range(table.slots) if (table.op[tick, :, slot] != Op.IDLE).any()]
        parts = [[_name(table, tick, s, slot) for s in range(table.stages)] for slot in used]
        widths = [max(map(len, part)) for part in parts]
        dots = [[name or "·" * size for name in part] for part, size in zip(parts, widths, strict=True)]
        room = max(sum(widths), len(str(tick)))
        columns.append(
            [
                "".join(f"{part[s]:{size}}" for part, size in zip(dots, widths, strict=True)).ljust(room)
                for s in range(table.stages)
            ]
        )
    return columns


def _name(table: TickTable, *at: int) -> str:
    """Such as F3, of the chunks of a stage F3a, F3b, …; empty where idle."""
    op = Op(table.op[at])
    if op == Op.IDLE:
        return ""
    return f"{_LETTERS[op]}{table.micro[at]}{_chunk(table.chunk[at]) if table.chunks > 1 else ''}"


def _chunk(number: int) -> str:
    """a to z, then aa, ab, …"""
    return (_chunk(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _blocks(widths: list[int], width: int) -> list[tuple[int, int]]:
    """Cuts the columns into runs that fit; a run has a column at least."""
    blocks, start, taken = [], 0, 0
    for tick, size in enumerate(widths):
        if tick > start and taken + size > width:
            blocks.append((start, tick))
            start, taken = tick, 0
        taken += size + 1
    return [*blocks, (start, len(widths))]


def _figures(table: TickTable, costs: Costs) -> list[str]:
    sizes = [(table.stages, "stage"), (table.microbatches, "microbatch"), (table.chunks, "chunk")]
    parts = [_count(*size) for size in (sizes if table.chunks > 1 else sizes[:2])]
    formula = bubble_formula(table.schedule, table.stages, table.microbatches, table.chunks, costs)
    told = f"formula {float(formula):.1%}" if formula is not None else "no formula for these sizes and costs"
    prices = f"F {costs.forward}, B {costs.input_grad}, W {costs.weight_grad}"
    kept = [f"stage inputs kept: {_row(table.stash_per_stage)}"]
    if table.deferred_size:
        kept.append(f"weight gradients laid aside: {_row(table.deferred_per_stage)}")
    alike = bubble(table, costs, alike=True)
    if alike != bubble(table, costs):
        kept.append(f"with context or sequence parallelism, where all stages must run alike: bubble {float(alike):.1%}")
    return [
        f"{table.schedule}: {', '.join(parts)}{' per stage' if table.chunks > 1 else ''}, {table.ticks} ticks",
        f"time {float(table_time(table, costs)):g} ({prices}), bubble {float(bubble(table, costs)):.1%} ({told})",
        *kept,
    ]


def _count(number: int, name: str) -> str:
    plural = "" if number == 1 else "es" if name.endswith("ch") else "s"
    return f"{number} {name}{plural}"


def _row(numbers: tuple[int, ...]) -> str:
    listed = np.array(numbers)
    if (listed == listed[0]).all():
        return f"{numbers[0]} on every stage"
    return f"{' '.join(map(str, numbers))} on stages 0 to {len(numbers) - 1}"


def _legend(table: TickTable) -> list[str]:
    split = bool((table.op == Op.WEIGHT_GRAD).any())
    backward = "B3 its input gradients, W3 its weight gradients" if split else "B3 its backward"
    if table.chunks > 1:
        last = _chunk(table.chunks - 1)
        return [f"F3a forward of microbatch 3 through chunk a (of a to {last}), B3a its backward, · waiting"]
    return [f"F3 forward of microbatch 3, {backward}, · waiting"]
