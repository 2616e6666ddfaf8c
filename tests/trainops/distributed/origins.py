"""Where a value of a compiled program comes from: constants alone, or the device as well."""

from __future__ import annotations

from collections.abc import Iterator

from apt_jax.trainops.distributed.collectives.hlo import Computation, Instruction, parse
from apt_jax.trainops.distributed.collectives.hlo import Program as Hlo
from apt_jax.trainops.distributed.collectives.read import KINDS

# A permute in a branch that not all devices take is matched with a wrong partner, without a sign. So no collective
# between stages stands in a branch, and a branch with a permute is chosen by what is equal on all devices.


class Origins:
    """Where the values of a compiled program come from, followed backwards from one of them."""

    def __init__(self, text: str):
        self.program: Hlo = parse(text)
        self._callers: dict[str, list[tuple[Computation, Instruction, str]]] = {}
        for computation in self.program.computations.values():
            for instruction in computation.instructions.values():
                for key in _CALLS:
                    for name in instruction.called(key):
                        self._callers.setdefault(name, []).append((computation, instruction, key))

    def conditionals(self) -> Iterator[tuple[Computation, Instruction]]:
        """Every conditional, and the computation it stands in."""
        for computation in self.program.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "conditional":
                    yield computation, instruction

    def holds(self, instruction: Instruction, kind: str) -> bool:
        """Whether a collective stands in what the instruction calls, however deep."""
        bodies = [self.program.computations[name] for key in _CALLS for name in instruction.called(key)]
        inside = [one for body in bodies for one in body.instructions.values()]
        return any(one.opcode.removesuffix("-start") == kind or self.holds(one, kind) for one in inside)

    def of_choice(self, computation: Computation, conditional: Instruction) -> set[str]:
        """Opcodes of the origins of what chooses the branch; "argument" for the program's."""
        self._seen: set[tuple[str, str, tuple[int, ...]]] = set()
        return set(self._follow(computation, conditional.operands[0], ()))

    def _follow(self, computation: Computation, name: str, path: tuple[int, ...]) -> Iterator[str]:
        """`path` leads into the tuple that `name` is."""
        if (key := (computation.name, name, path)) in self._seen:
            return
        self._seen.add(key)
        one = computation.instructions[name]
        called = {key: [self.program.computations[n] for n in one.called(key)] for key in _CALLS}
        if one.opcode == "parameter":
            yield from self._argument(computation, int(one.operands[0]), path)
        elif one.opcode == "get-tuple-element":
            yield from self._follow(computation, one.operands[0], (int(one.attribute("index") or 0), *path))
        elif one.opcode == "tuple" and path:
            yield from self._follow(computation, one.operands[path[0]], path[1:])
        elif one.opcode == "while":
            yield from self._follow(computation, one.operands[0], path)
            yield from self._result(called["body"][0], path)
        elif one.opcode in ("conditional", "fusion", "call"):
            for key in _CALLS:
                for body in called[key]:
                    yield from self._result(body, path)
            if one.opcode == "conditional":
                yield from self._follow(computation, one.operands[0], ())
        elif one.opcode.removesuffix("-start") in KINDS or not one.operands or one.opcode in ("constant", "iota"):
            yield one.opcode
        else:
            for operand in one.operands:
                yield from self._follow(computation, operand, path if one.opcode in _ALIASES else ())

    def _result(self, body: Computation, path: tuple[int, ...]) -> Iterator[str]:
        assert body.root is not None
        yield from self._follow(body, body.root.name, path)

    def _argument(self, computation: Computation, index: int, path: tuple[int, ...]) -> Iterator[str]:
        if computation.name == self.program.entry:
            yield "argument"
        for where, caller, key in self._callers.get(computation.name, []):
            if caller.opcode == "while":
                yield from self._follow(where, caller.operands[0], path)
                yield from self._result(self.program.computations[caller.called("body")[0]], path)
            elif caller.opcode == "conditional":
                branches = [n for k in _CALLS for n in caller.called(k)]
                for branch in (i for i, name in enumerate(branches) if name == computation.name):
                    yield from self._follow(where, caller.operands[1 + branch], path)
            elif caller.opcode in ("fusion", "call"):
                yield from self._follow(where, caller.operands[index], path)
            else:
                raise AssertionError(f"{caller.opcode} calls by {key}: not known")


_CALLS = ("body", "condition", "branch_computations", "true_computation", "false_computation", "calls", "to_apply")
_ALIASES = ("copy", "optimization-barrier", "bitcast")
