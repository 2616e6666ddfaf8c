"""How much of a step's matrix products is quantised, counted in what is really traced.

Rules only say what should be: a model that multiplies with `@`, casts a weight first or ties its head is missed by
whoever replaces attributes. Here every product of the jaxpr counts, with the trips of its loops; quantised are those
that carry the mark of `dot.SCOPE` in their name stack, which jax keeps through scan, remat, vmap and autodiff.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.quant.dot.dot import OVERHEAD, SCOPE

_MARK = re.compile(rf"{re.escape(SCOPE)}\.(\w+)\.(forward|dgrad|wgrad)")
_MACHINERY = (str(Path(__file__).parent), *(str(Path(module.__file__ or "").parent) for module in (jax, flax)))
_SCALED = ("scaled_matmul_wrapper", "scaled_matmul")
_RAGGED = ("ragged_dot", "ragged_dot_general")
_PRODUCTS = ("dot_general", "scaled_dot", "conv_general_dilated", *_SCALED, *_RAGGED)


@dataclass(frozen=True)
class Coverage:
    """FLOPs of the matrix products of a function, 2 · m · n · k each.

    Attributes:
      quantized: by recipe and product, as "nvfp4 dgrad".
      plain: by where it is written, as "dense.py:49 __call__".
      overhead: what quantisation adds (Hadamard transforms); in neither of the two.
      uncounted: what may multiply and cannot be seen into, or not how often.
    """

    quantized: Mapping[str, float]
    plain: Mapping[str, float]
    overhead: float = 0.0
    uncounted: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the FLOPs; 0 where nothing is multiplied."""
        done, rest = sum(self.quantized.values()), sum(self.plain.values())
        return done / (done + rest) if done + rest else 0.0

    def require(self, share: float) -> None:
        """Raises ConfigError where less is quantised; the line names the largest product that is not."""
        if self.share < share:
            largest = max(self.plain, key=lambda where: self.plain[where], default="nothing")
            of_all = self.plain.get(largest, 0.0) / (sum(self.plain.values()) + sum(self.quantized.values()) or 1.0)
            raise ConfigError(
                f"quantised are {self.share:.1%} of the FLOPs of matrix products, asked for are {share:.1%}; the "
                f"largest that is not, {of_all:.1%}, is {largest}; add a rule for it, or ask for less"
            )

    def text(self) -> str:
        """A table, largest first."""
        total = sum(self.quantized.values()) + sum(self.plain.values()) or 1.0
        lines = [f"quantised: {self.share:.1%} of the FLOPs of matrix products"]
        for title, table in (("quantised", self.quantized), ("not", self.plain)):
            ordered = sorted(table.items(), key=lambda row: -row[1])
            lines += [f"  {flops / total:6.1%}  {title}: {name}" for name, flops in ordered]
        if self.overhead:
            lines.append(f"  {self.overhead / total:6.1%}  on top: Hadamard transforms")
        return "\n".join([*lines, *(f"  not counted: {what}" for what in self.uncounted)])


def measure(jaxpr: ClosedJaxpr) -> Coverage:
    """Coverage of a traced function: `measure(jax.make_jaxpr(f)(x))`, or `measure(step.trace(state, batch).jaxpr)`.

    Of a `cond` the most expensive branch counts; a `while` whose trips are unknown counts as one and is listed.
    """
    count = _Count()
    count.walk(jaxpr.jaxpr, 1.0, "")
    return Coverage(dict(count.quantized), dict(count.plain), count.overhead, tuple(dict.fromkeys(count.uncounted)))


@dataclass
class _Count:
    quantized: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    plain: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    overhead: float = 0.0
    uncounted: list[str] = field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(self.quantized.values()) + sum(self.plain.values()) + self.overhead

    def walk(self, jaxpr: Jaxpr, times: float, stack: str) -> None:
        for eqn in jaxpr.eqns:
            inside = f"{stack}/{eqn.source_info.name_stack}"
            name, params = eqn.primitive.name, eqn.params
            if flops := _flops(eqn):
                self._add(times * flops, inside, eqn)
            elif name == "cond":
                self._dearest(params["branches"], times, inside)
            elif name == "pallas_call":
                self.uncounted.append(f"a Pallas kernel at {_where(eqn)}")
            else:
                trips = times * _trips(eqn)
                before = self.total
                for inner in _inner(params):
                    self.walk(inner, trips, inside)
                if name == "while" and self.total > before:
                    self.uncounted.append(f"all but the first trip of the loop at {_where(eqn)}")

    def _add(self, flops: float, stack: str, eqn: Any) -> None:
        mark = _MARK.search(stack)
        if OVERHEAD in stack:
            self.overhead += flops
        elif mark:
            self.quantized[f"{mark[1]} {mark[2]}"] += flops
        else:
            self.plain[_where(eqn)] += flops

    def _dearest(self, branches: Any, times: float, stack: str) -> None:
        counts = []
        for branch in branches:
            count = _Count()
            count.walk(branch.jaxpr, times, stack)
            counts.append(count)
        most = max(counts, key=lambda count: count.total)
        for mine, its in ((self.quantized, most.quantized), (self.plain, most.plain)):
            for name, flops in its.items():
                mine[name] += flops
        self.overhead += most.overhead
        self.uncounted += [what for count in counts for what in count.uncounted]


def _flops(eqn: Any) -> float:
    """2 · m · n · k of a product; 0 for anything else."""
    name = eqn.primitive.name
    if name not in _PRODUCTS:
        return 0.0
    shapes: list[tuple[int, ...]] = [var.aval.shape for var in eqn.invars]
    out: tuple[int, ...] = eqn.outvars[0].aval.shape
    if name in ("dot_general", "scaled_dot"):
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * math.prod(out) * math.prod(shapes[0][axis] for axis in contracted)
    if name in _SCALED:
        return 2.0 * math.prod(out) * shapes[0][-1]
    if name in _RAGGED:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (contracted, _), _ = numbers.dot_dimension_numbers
        # Each row of the result meets one group; where rows are contracted, groups share them.
        groups = shapes[2][-1] if set(numbers.lhs_ragged_dimensions) & set(contracted) else 1
        return 2.0 * math.prod(out) * math.prod(shapes[0][axis] for axis in contracted) / groups
    kernel, numbers = shapes[1], eqn.params["dimension_numbers"]
    return 2.0 * math.prod(out) * math.prod(kernel) / kernel[numbers.rhs_spec[0]]


def _trips(eqn: Any) -> float:
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "shard_map":  # its shapes are those of one device
        return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])
    return 1.0


def _inner(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _where(eqn: Any) -> str:
    """`file.py:12 function` of the innermost frame that is neither jax's nor flax' nor of this package."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if not frame.file_name.startswith(_MACHINERY):
            return f"{Path(frame.file_name).name}:{frame.line_num} {frame.function_name.rpartition('.')[2]}"
    return "unknown"
