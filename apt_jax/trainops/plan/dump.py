"""What XLA says of its buffers: which values live at the peak, and where in which allocation each lies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PEAK = re.compile(r"^\s*Live ranges at \d+ \(peak\):\s*$")
_LIVE = re.compile(r"^\s+(\S+?)(\{[\d,]*\}): (\d+) bytes")
_ALLOCATION = re.compile(r"^allocation \d+: size \d+, (.*):\s*$")
_VALUE = re.compile(r"^ value: <\d+ (\S+?)(\{[\d,]*\})?(?: \([\w ]+\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class LiveValue:
    """An array that lies in the temporary memory at the peak.

    Attributes:
      instruction: of the compiled program, that made it.
      dtype, shape: as XLA writes them.
      offset, size: bytes, in the allocation of temporaries.
    """

    instruction: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_dump(folder: Path) -> tuple[LiveValue, ...] | None:
    """The temporaries alive at the peak of a program dumped by `xla_dump_to`; None if nothing was dumped."""
    ranges = sorted(folder.glob("*live-range.txt"), key=lambda path: path.stat().st_size)
    buffers = sorted(folder.glob("*buffer-assignment.txt"), key=lambda path: path.stat().st_size)
    if not ranges or not buffers:
        return None
    return peak_values(ranges[-1].read_text(errors="replace"), buffers[-1].read_text(errors="replace"))


def peak_values(ranges: str, buffers: str) -> tuple[LiveValue, ...] | None:
    """The same from the texts of `…-live-range.txt` and `…-buffer-assignment.txt`."""
    live = _live_names(ranges)
    if not live:
        return None
    found = []
    temporary = False
    for line in buffers.splitlines():
        if (allocation := _ALLOCATION.match(line)) is not None:
            temporary = "preallocated-temp" in allocation[1]
        elif temporary and (value := _VALUE.match(line)) is not None:
            array = _ARRAY.match(value[5])
            if array is not None and (value[1], value[2] or "{}") in live:
                shape = tuple(int(size) for size in array[2].split(",") if size)
                found.append(LiveValue(value[1], array[1], shape, int(value[4]), int(value[3])))
    return tuple(found)


def _live_names(ranges: str) -> set[tuple[str, str]]:
    names: set[tuple[str, str]] = set()
    inside = False
    for line in ranges.splitlines():
        if _PEAK.match(line):
            inside = True
        elif inside:
            found = _LIVE.match(line)
            if found is None:
                break
            names.add((found[1], found[2]))
    return names


def covered(values: tuple[LiveValue, ...]) -> list[tuple[LiveValue, int]]:
    """Each value with the bytes of it that no earlier one covers, so that shared buffers count once."""
    taken: list[tuple[int, int]] = []  # disjoint, sorted
    shares = []
    for value in sorted(values, key=lambda v: -v.size):
        start, end = value.offset, value.offset + value.size
        overlap = sum(max(0, min(end, b) - max(start, a)) for a, b in taken)
        shares.append((value, value.size - overlap))
        touching = [(a, b) for a, b in taken if a <= end and b >= start]
        merged = min([start, *(a for a, _ in touching)]), max([end, *(b for _, b in touching)])
        taken = sorted([*(each for each in taken if each not in touching), merged])
    return shares
