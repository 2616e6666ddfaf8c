"""A device's memory by cause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from apt_jax.trainops.distributed.collectives.hlo import Instruction, Program, parse
from apt_jax.trainops.distributed.collectives.read import KINDS
from apt_jax.trainops.distributed.report import ShardingReport, report_shardings
from apt_jax.trainops.distributed.rules import param_shardings, without
from apt_jax.trainops.distributed.strategy import Strategy
from apt_jax.trainops.plan.compiled import Compiled, host_bytes, shard_bytes
from apt_jax.trainops.plan.dump import LiveValue, covered

# Cause -> what it is; in the order in which they are shown.
CAUSES: dict[str, str] = {
    "parameters": "weights, fp32",
    "optimizer": "the optimizer's state",
    "batch": "tokens, targets, masks",
    "gradients": "of a microbatch, and their sum",
    "weight_copies": "weights and gradients in compute precision",
    "saved_activations": "kept from the forward for the backward pass",
    "logits": "of a chunk of tokens",
    "communication": "what collectives gather or send",
    "working": "everything else in flight, and gaps",
    "code": "the program itself",
}
Origin = str  # exact: from shapes and shardings; compiler: alive at the peak; estimated: by formula
_WIDE = ("f32", "f64")


@dataclass(frozen=True)
class Part:
    """Bytes of one cause, and where the figure comes from: `exact`, `compiler` or `estimated`."""

    bytes: int
    origin: Origin


def break_down(done: Compiled) -> dict[str, Part]:
    """Bytes of one device by cause; they add up to the compiler's total.

    Parameters, optimizer and batch follow from shapes and shardings. The compiler's temporaries are told apart by
    what lives at their peak, where it says so; else gradients, saved activations and logits are estimated and the
    rest is `working`.
    """
    program, allocated = done.setup.program, done.allocated
    state = program.abstract_state()
    parameters = _device_bytes(state.params, program.memory_kinds.params)
    optimizer = _device_bytes(state.opt_state, program.memory_kinds.opt_state)
    # Outputs that lie over no argument, and paddings, are a few bytes: the step's counters go with the batch.
    rest = allocated.arguments - parameters - optimizer + allocated.outputs - allocated.aliased
    parts = {
        "parameters": Part(parameters, "exact"),
        "optimizer": Part(optimizer, "exact"),
        "batch": Part(rest, "exact"),
    }
    if done.peak is None:
        found, origin = _estimate(done), "estimated"
    else:
        found, origin = _sort(done, done.peak), "compiler"
    scale = min(1.0, allocated.temporaries / max(1, sum(found.values())))
    found = {cause: int(size * scale) for cause, size in found.items()}
    found["working"] = found.get("working", 0) + allocated.temporaries - sum(found.values())
    parts |= {cause: Part(size, origin) for cause, size in found.items()}
    parts["code"] = Part(allocated.code, "compiler")
    return {cause: parts[cause] for cause in CAUSES if cause in parts and parts[cause].bytes}


def replicated_warnings(report: ShardingReport, memory: int) -> tuple[str, ...]:
    """One line if parameters that lie whole on every device take more than a hundredth of its memory."""
    whole = [p for p in report.placements if p.replicated]
    held = sum(p.per_device.total for p in whole)
    if held * 100 < memory:
        return ()
    largest = max(whole, key=lambda p: p.per_device.total)
    return (
        f"replicated on every device: {len(whole)} of {len(report.placements)} parameters, {held / 2**30:.1f} GiB with "
        f"gradient and optimizer; the largest is {largest.path}",
    )


def sharding_report(done: Compiled) -> ShardingReport:
    """Where each parameter lies."""
    program = done.setup.program
    return report_shardings(program.strategy, program.abstract_state().opt_state, program.memory_kinds.opt_state)


def _device_bytes(tree: Any, kinds: Any) -> int:
    return sum(map(shard_bytes, jax.tree.leaves(tree))) - host_bytes(tree, jax.tree.leaves(kinds))


def _sort(done: Compiled, peak: tuple[LiveValue, ...]) -> dict[str, int]:
    facts = Facts.of(done)
    program = parse(done.text)
    instructions = _by_name(program)
    found: dict[str, int] = {}
    for value, size in covered(peak):
        cause = facts.cause(value.dtype, value.shape, instructions.get(value.instruction))
        found[cause] = found.get(cause, 0) + size
    return found


def _by_name(program: Program) -> Mapping[str, Instruction]:
    return {name: it for computation in program.computations.values() for name, it in computation.instructions.items()}


@dataclass(frozen=True)
class Facts:
    """Shapes that tell what an array is; without axes of size 1 and in any order, as XLA turns them.

    Attributes:
      weights: of one device's parameters and gradients, as they lie and as they are gathered; of all its layers,
        and of one.
      vocabulary: sizes of a vocabulary axis, whole and cut.
      stacks: lengths of an axis over layers or over microbatches under way.
      tokens: of one microbatch on one device.
    """

    weights: frozenset[tuple[int, ...]]
    vocabulary: frozenset[int]
    stacks: frozenset[int]
    tokens: int

    @staticmethod
    def of(done: Compiled) -> Facts:
        """From the shardings of a compiled step."""
        program, training = done.setup.program, done.config.training
        strategy, mesh = program.strategy, program.mesh.shape
        rows = done.config.training.batch_size // training.gradient_accumulation_steps
        tokens = math.prod(program.batch_sharding.shard_shape((rows, done.length)))
        if program.layout.sequence_parallel:
            tokens //= mesh["tensor"]
        layers = done.config.model.num_layers
        stacks = {layers, layers // mesh["pipe"], layers // mesh["pipe"] // training.distributed.pipeline_chunks}
        if (table := pipeline_table(done)) is not None:
            stacks |= {table.stash_size, table.stash_size + 1, table.deferred_size, table.deferred_size + 1}
        vocabulary = done.vocab_size
        return Facts(
            weights=frozenset(_weight_shapes(strategy)),
            vocabulary=frozenset({vocabulary, vocabulary // mesh["tensor"]}),
            stacks=frozenset(stacks - {0, 1}),
            tokens=max(1, tokens),
        )

    def cause(self, dtype: str, shape: tuple[int, ...], made_by: Instruction | None) -> str:
        """Why an array is there."""
        opcode = made_by.opcode if made_by is not None else ""
        if opcode.removesuffix("-start").removesuffix("-done") in KINDS or "collective" in opcode:
            return "communication"
        if _plain(shape) in self.weights:
            return "gradients" if dtype in _WIDE else "weight_copies"
        if self.vocabulary & set(shape):
            return "logits"
        stacked = len(shape) > 1 and shape[0] in self.stacks
        if stacked and math.prod(shape[1:]) % self.tokens == 0:
            return "saved_activations"
        return "working"


def _weight_shapes(strategy: Strategy) -> set[tuple[int, ...]]:
    shapes: set[tuple[int, ...]] = set()
    params = jax.tree_util.tree_leaves_with_path(strategy.abstract_params)
    gathered = param_shardings(without(strategy.rules, "fsdp"), strategy.abstract_params, strategy.stored_axes)
    for placed in (strategy.param_shardings, strategy.gradient_shardings, gathered):
        for (path, x), where in zip(params, jax.tree.leaves(placed), strict=True):
            if len(x.shape) < 2:
                continue
            local = where.shard_shape(x.shape)
            shapes.add(_plain(local))
            if getattr(path[0], "key", None) == "layers":
                shapes |= {_plain(local[start:]) for start in range(1, len(local) - 1)}
    return {shape for shape in shapes if len(shape) > 1}


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


def pipeline_table(done: Compiled) -> Any:
    """The pipeline's schedule; None without one."""
    from apt_jax.trainops.distributed.pipeline.table import make_table

    training = done.config.training
    stages, layout = done.setup.program.mesh.shape["pipe"], training.distributed
    if stages == 1:
        return None
    return make_table(layout.pipeline_schedule, stages, training.gradient_accumulation_steps, layout.pipeline_chunks)


def _estimate(done: Compiled) -> dict[str, int]:
    """Without the compiler's word: gradients as they are summed up, a residual stream per layer, a chunk of logits."""
    facts, training, mesh = Facts.of(done), done.config.training, done.setup.program.mesh.shape
    width, item = done.config.model.hidden_size, done.setup.dtype.itemsize
    report = sharding_report(done)
    summed = 2 if training.gradient_accumulation_steps > 1 and mesh["pipe"] == 1 else 1
    chunk = min(training.loss_chunk, facts.tokens)
    return {
        "gradients": summed * (report.per_device.gradients - report.host.gradients),
        "saved_activations": max(facts.stacks, default=1) * facts.tokens * width * item,
        "logits": 2 * 4 * chunk * min(facts.vocabulary),
    }
