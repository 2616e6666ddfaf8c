"""How often a while loop of a compiled program runs."""

from __future__ import annotations

import re
from typing import Any

from apt_jax.trainops.distributed.collectives.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r'"?known_trip_count"?\s*[:=]\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)')
_TRANSPARENT = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")
_VIA = {"fusion": "calls", "call": "to_apply"}
Value = Any  # int; ("var", tuple index); ("add" | "lt", Value, Value); None: not known


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """Executions of the body of `loop`.

    XLA's own `known_trip_count` if it is there. Else the loop must count: its condition is `i < limit` for a
    constant limit, its body adds 1 to `i`, and `i` starts at a constant. Else None: it depends on data.
    """
    if known := _KNOWN.search(loop.attributes):
        return int(known[1])
    condition, body = (program.computations.get((loop.called(key) or [""])[0]) for key in ("condition", "body"))
    start = caller.operand(loop, 0)
    if condition is None or body is None or start is None or condition.root is None or body.root is None:
        return None
    match _value(program, condition, condition.root):
        case ("lt", ("var", int(index)), int(limit)):
            first, step = _element(program, caller, start, index), _element(program, body, body.root, index)
            if isinstance(first, int) and step in (("add", ("var", index), 1), ("add", 1, ("var", index))):
                return max(0, limit - first)
    return None


def _element(program: Program, where: Computation, made: Instruction, index: int) -> Value:
    """Element `index` of the tuple that `made` makes."""
    while made.opcode in _TRANSPARENT and (source := where.operand(made, 0)) is not None:
        made = source
    part = where.operand(made, index) if made.opcode == "tuple" else None
    return None if part is None else _value(program, where, part)


def _value(program: Program, where: Computation, it: Instruction, arguments: tuple[Value, ...] = ()) -> Value:
    """What a scalar instruction computes, in terms of constants and elements of the computation's parameter."""
    parts = [where.operand(it, i) for i in range(len(it.operands))]

    def value(index: int) -> Value:
        part = parts[index] if index < len(parts) else None
        return None if part is None else _value(program, where, part, arguments)

    if it.opcode == "constant":
        return int(it.operands[0]) if it.operands and re.fullmatch(r"-?\d+", it.operands[0]) else None
    if it.opcode == "parameter":
        index = int(it.operands[0])
        return arguments[index] if index < len(arguments) else None
    if it.opcode == "get-tuple-element" and parts[0] is not None and parts[0].opcode == "parameter":
        return "var", int(it.attribute("index") or 0)
    if it.opcode in _TRANSPARENT:
        return value(0)
    if it.opcode == "add":
        return "add", value(0), value(1)
    if it.opcode == "compare" and it.attribute("direction") == "LT":
        return "lt", value(0), value(1)
    called = program.computations.get((it.called(_VIA.get(it.opcode, "calls")) or [""])[0])
    if it.opcode in _VIA and called is not None and called.root is not None:
        return _value(program, called, called.root, tuple(map(value, range(len(parts)))))
    return None
