"""Collectives added up by kind and mesh axes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from apt_jax.trainops.distributed.collectives.read import Collective


@dataclass(frozen=True)
class Total:
    """Collectives of one kind over the same axes, in one run of the program.

    Attributes:
      executions: how many run.
      bytes: payload of one device over all executions.
      conditional: of the executions, those that run only where a branch is taken.
    """

    executions: int
    bytes: int
    conditional: int = 0


Summary = dict[tuple[str, tuple[str, ...]], Total]


def summarize(collectives: Iterable[Collective]) -> Summary:
    """Totals by (kind, axes), sorted; a collective in a branch counts as if the branch were always taken."""
    totals: Summary = {}
    for one in collectives:
        key, before = (one.kind, one.axes), totals.get((one.kind, one.axes), Total(0, 0))
        totals[key] = Total(
            executions=before.executions + one.count,
            bytes=before.bytes + one.count * one.bytes,
            conditional=before.conditional + one.count * one.conditional,
        )
    return dict(sorted(totals.items()))


def render(summary: Summary) -> str:
    """One line per kind and axes: executions and the bytes of one device per run."""
    if not summary:
        return "no collectives"
    rows = [("collective", "axes", "executions", "bytes per device")]
    for (kind, axes), total in summary.items():
        executions = f"{total.executions:,}" + (f" ({total.conditional:,} in branches)" if total.conditional else "")
        rows.append((kind, "×".join(axes) or "none", executions, f"{total.bytes:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
