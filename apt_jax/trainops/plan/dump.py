"""What XLA says of its buffers: which values live at the peak, and where in which allocation each lies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PEAK = re.compile(r"^\s*Live ranges at \d+ \(peak\):\s*$")
_LIVE = re.compile(r"^\s+(\S+?)(\{[\d,]*\}): (\d+) bytes")
_RANGE = re.compile(r"^\s+(\S+?)(\{[\d,]*\}):(\d+)-(\d+)$")
_ALLOCATION = re.compile(r"^allocation \d+: size \d+, (.*):\s*$")
_ELSEWHERE = re.compile(r"color \d+, ")  # of an allocation that is not in the device's memory
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
    """The same from the texts of `…-live-range.txt` and `…-buffer-assignment.txt`.

    XLA's peak is that of all memories together. Where some of it is the host's, the device's own is looked for.
    """
    names, values, elsewhere = _live_names(ranges), [], False
    if not names:
        return None
    temporary = False
    for line in buffers.splitlines():
        if (allocation := _ALLOCATION.match(line)) is not None:
            other = _ELSEWHERE.match(allocation[1]) is not None
            elsewhere, temporary = elsewhere or other, not other and "preallocated-temp" in allocation[1]
        elif temporary and (value := _VALUE.match(line)) is not None:
            array = _ARRAY.match(value[5])
            if array is not None:
                shape = tuple(int(size) for size in array[2].split(",") if size)
                found = LiveValue(value[1], array[1], shape, int(value[4]), int(value[3]))
                values.append(((value[1], value[2] or "{}"), found))
    if elsewhere:
        return _largest_moment(values, _live_ranges(ranges))
    return tuple(value for key, value in values if key in names)


_Key = tuple[str, str]  # instruction, index within its result


def _largest_moment(
    values: list[tuple[_Key, LiveValue]], ranges: dict[_Key, tuple[int, int]]
) -> tuple[LiveValue, ...]:
    """Of the values with ranges, those alive together that cover most memory."""
    alive: dict[int, list[LiveValue]] = {}
    for key, value in values:
        start, end = ranges.get(key, (0, -1))
        for moment in range(start, end + 1):
            alive.setdefault(moment, []).append(value)
    best, most = (), 0
    for together in sorted(alive.values(), key=lambda each: -sum(v.size for v in each)):
        if sum(v.size for v in together) <= most:
            break
        size = sum(size for _, size in covered(tuple(together)))
        if size > most:
            best, most = tuple(together), size
    return best


def _live_ranges(text: str) -> dict[_Key, tuple[int, int]]:
    lines = text.partition("BufferLiveRange:")[2].splitlines()[1:]
    found = {}
    for line in lines:
        one = _RANGE.match(line)
        if one is None:
            break
        found[one[1], one[2]] = int(one[3]), int(one[4])
    return found


def _live_names(ranges: str) -> set[_Key]:
    names: set[_Key] = set()
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
