"""FLOPs of a step: by formula what the model needs, and counted what the compiled program does."""

from __future__ import annotations

import math
import re

from apt_jax.core.config.schema import ModelConfig
from apt_jax.trainops.distributed.collectives.hlo import Computation, Instruction, Program, parse, tuple_parts
from apt_jax.trainops.distributed.collectives.trips import trip_count

_DIMS = re.compile(r"^\s*\w+\[([\d,]*)\]")
_GEMM = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_CALLS = ("calls", "to_apply", "called_computations")
_BRANCHES = ("branch_computations", "true_computation", "false_computation")


def model_flops(model: ModelConfig, num_params: int, tokens: int, length: int, vocab_size: int) -> float:
    """FLOPs that a step needs whatever is recomputed: 6 · parameters · tokens, and attention.

    A table that is only looked up multiplies nothing and is left out. Attention to the keys a token sees on
    average costs 12 · heads · head_dim of each layer and key, forward and backward together.

    Args:
      model: sizes.
      num_params: of the whole model.
      tokens: of a step.
      length: tokens per row.
      vocab_size: rows of the embedding.
    """
    table = 0 if model.tie_word_embeddings else vocab_size * model.hidden_size
    width = model.num_attention_heads * (model.head_dim or model.hidden_size // model.num_attention_heads)
    window = min(model.sliding_window or length, length)
    keys = (window * (window + 1) / 2 + (length - window) * window) / length
    return 6.0 * (num_params - table) * tokens + 12.0 * model.num_layers * width * keys * tokens


def compiled_flops(
    text: str, ticks: int | None = None, runs: int = 1, *, nested: float = 1.0, same_once: bool = False
) -> float | None:
    """FLOPs of the matrix products of one device in one run of an optimized program.

    Loops count as often as they run. In a pipeline's loop each branch is one kind of work, and counts as often as
    a stage does it, not as often as the loop runs.

    Args:
      text: `compiled.as_text()`.
      ticks: length of a pipeline's loop; None: no pipeline.
      runs: how often a stage takes each branch of that loop.
      nested: how often, of these times, it takes the branches inside them.
      same_once: branches of the loop with equal work are one kind of work, in several slots, that `runs` counts.

    Returns:
      None where products are written in a way that is not understood, as in programs for TPU.
    """
    program = parse(text)
    counter = _Counter(program, ticks, runs, nested, same_once)
    total = counter.count(program.computations[program.entry], None)
    return total if total and not counter.unknown else None


class _Counter:
    def __init__(self, program: Program, ticks: int | None, runs: int, nested: float, same_once: bool):
        self._program, self._ticks, self._runs = program, ticks, runs
        self._nested, self._same_once = nested, same_once
        self._known: dict[tuple[str, float | None], float] = {}
        self.unknown = False

    def count(self, computation: Computation, branch: float | None) -> float:
        """`branch`: by what a conditional's branches count; None: as if each were taken."""
        key = computation.name, branch
        if key not in self._known:
            self._known[key] = 0.0  # no recursion in XLA
            self._known[key] = sum(self._one(computation, each, branch) for each in computation.instructions.values())
        return self._known[key]

    def _one(self, computation: Computation, it: Instruction, branch: float | None) -> float:
        match it.opcode:
            case "dot":
                return self._dot(computation, it, it.attribute("lhs_contracting_dims") or "{}")
            case "convolution":
                self.unknown = True
            case "custom-call" if (found := _GEMM.search(it.attributes)) is not None:
                return self._dot(computation, it, found[1].replace('"', ""))
            case "custom-call" if "__cudnn$blockScaledDot" in it.attributes:
                return self._dot(computation, it, "2")  # [1, m, k], [1, n, k] and their scales
            case "while":
                trips = trip_count(self._program, computation, it) or 1
                if self._ticks is None or trips != self._ticks:
                    return trips * self._called(it, ("body",), branch)
                again = self._runs * self._repeated(it) if self._same_once else 0.0
                return trips * self._called(it, ("body",), self._runs / trips) - again
            case "conditional":
                within = self._nested if self._ticks is not None else 1.0
                return (within if branch is None else branch) * self._called(it, _BRANCHES, None)
            case "fusion" | "call" | "async-start" | "custom-call":
                return self._called(it, _CALLS, branch)
        return 0.0

    def _repeated(self, loop: Instruction) -> float:
        """FLOPs of the branches of a loop whose work another has as well."""
        (body,) = (self._program.computations[name] for name in loop.called("body"))
        work = [self._called(it, _BRANCHES, None) for it in body.instructions.values() if it.opcode == "conditional"]
        return sum(work) - sum(set(work))

    def _called(self, it: Instruction, keys: tuple[str, ...], branch: float | None) -> float:
        names = [name for key in keys for name in it.called(key) if name in self._program.computations]
        return sum(self.count(self._program.computations[name], branch) for name in names)

    def _dot(self, computation: Computation, it: Instruction, contracting: str) -> float:
        left = computation.operand(it, 0)
        if left is None:
            self.unknown = True
            return 0.0
        sizes, out = _sizes(left.shape), _sizes(tuple_parts(it.shape)[0])
        axes = [int(axis) for axis in re.findall(r"\d+", contracting)]
        return 2.0 * math.prod(out) * math.prod(sizes[axis] for axis in axes)


def _sizes(shape: str) -> tuple[int, ...]:
    found = _DIMS.match(shape)
    return tuple(int(size) for size in found[1].split(",") if size) if found else ()
