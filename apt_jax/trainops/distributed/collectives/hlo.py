"""The text of a compiled XLA program as computations of instructions; only as much as counting needs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from apt_jax.core.errors import AptError

_COMPUTATION = re.compile(r"^\s*(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*\)\s*->.*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT\s+)?%?([\w.\-]+)\s+=\s+(.*)$")
_OPCODE = re.compile(r"^\s*([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=? ]*)\]")
_NAME = re.compile(r"%?([\w.\-]+)\s*$")
_WIDTH = re.compile(r"[a-z]+(\d+)")  # every type but pred carries its bits in its name: bf16, s4, c64, f8e4m3fn
_CLOSING = {"(": ")", "{": "}", "[": "]"}


class ProgramError(AptError):
    """The text of a compiled program cannot be read."""


@dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name: unique within its computation.
      shape: of the result as written, `f32[8,4]{1,0}` or a tuple `(f32[4], s32[])`.
      opcode: as `all-reduce-start`.
      operands: names; the arguments as written for `parameter` and `constant`.
      attributes: all that follows the operands.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, key: str) -> str | None:
        """The value of `key=…`: a bracketed text with its brackets, or the word; None where it is absent."""
        found = re.search(rf"(?:^|[\s,]){key}=", self.attributes)
        if found is None:
            return None
        rest = self.attributes[found.end() :]
        if rest[:1] in _CLOSING:
            return rest[: _end_of_bracket(rest, 0)]
        return re.split(r",\s|\s", rest, maxsplit=1)[0]

    def called(self, key: str) -> list[str]:
        """The computations that attribute `key` names."""
        return re.findall(r"[\w.\-]+", self.attribute(key) or "")


@dataclass
class Computation:
    """Instructions by name, in program order; the last or marked one is the root."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None

    def operand(self, instruction: Instruction, index: int) -> Instruction | None:
        """The instruction that makes operand `index`."""
        names = instruction.operands
        return self.instructions.get(names[index]) if index < len(names) else None


@dataclass(frozen=True)
class Program:
    """Computations by name, and the name of the one that runs."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Reads `compiled.as_text()` of any platform.

    Raises:
      ProgramError: no ENTRY computation, as in StableHLO or an empty text.
    """
    computations: dict[str, Computation] = {}
    current, entry, marked = None, None, False
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if (header := _COMPUTATION.match(line)) is not None:
            current, marked = Computation(header[2]), False
            computations[current.name] = current
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)) is not None:
            instruction = _instruction(found[2], found[3])
            if instruction is not None:
                current.instructions[instruction.name] = instruction
                marked = marked or found[1] is not None
                if found[1] is not None or not marked:
                    current.root = instruction
    if entry is None:
        raise ProgramError("compiled program: no ENTRY computation; give the text of lowered.compile().as_text()")
    return Program(computations, entry)


def _instruction(name: str, rest: str) -> Instruction | None:
    at = _end_of_bracket(rest, 0) if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest[at:]) if at > 0 else None
    if opcode is None:
        return None
    start = at + opcode.end() - 1
    end = _end_of_bracket(rest, start)
    inner = rest[start + 1 : end - 1]
    names = tuple(found[1] if (found := _NAME.search(part)) else part.strip() for part in split(inner))
    return Instruction(name, rest[:at], opcode[1], names, rest[end:].lstrip(", "))


def _end_of_bracket(text: str, start: int) -> int:
    """The index after the bracket that closes the one at `start`; quoted text does not count."""
    depth, quoted = 0, False
    for at in range(start, len(text)):
        char = text[at]
        if char == '"' and text[at - 1] != "\\":
            quoted = not quoted
        elif not quoted and char in "({[":
            depth += 1
        elif not quoted and char in ")}]":
            depth -= 1
            if depth == 0:
                return at + 1
    return len(text)


def split(text: str) -> Iterator[str]:
    """The parts between the commas outside of brackets."""
    depth, start = 0, 0
    for at, char in enumerate(text):
        depth += (char in "({[") - (char in ")}]")
        if char == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    if text[start:].strip():
        yield text[start:]


def tuple_parts(shape: str) -> list[str]:
    """The element shapes of a tuple shape; an array is its only part."""
    shape = shape.strip()
    return [part.strip() for part in split(shape[1:-1])] if shape.startswith("(") else [shape]


def shape_bytes(shape: str) -> int:
    """Bytes of an array or of all arrays of a tuple, without layout padding; tokens have none."""
    return sum(
        -(-_bits(dtype) * math.prod(int(size.strip(" <=")) for size in sizes.split(",") if size.strip()) // 8)
        for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape))
    )


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    width = _WIDTH.match(dtype)
    return int(width[1]) if width else 0
