"""A large plan as plain text of at most 120 columns."""

from __future__ import annotations

import textwrap

from apt_jax.trainops.extreme.axes import NAMES
from apt_jax.trainops.extreme.placement import Placement
from apt_jax.trainops.extreme.reliability import Reliability, Row
from apt_jax.trainops.extreme.report import ScalePlan
from apt_jax.trainops.plan import render as render_plan
from apt_jax.trainops.plan.text import WIDTH, aligned, size_text, time_text

_HEADING = ("device MTBF", "job MTBF", "failures a day", "save every", "goodput", "checkpoints", "rework", "restarts")


def render(found: ScalePlan) -> str:
    """Placement, the compiled step, failures, and the verdict."""
    plan = found.plan
    head, _, verdict = render_plan(plan).rpartition("\n\n")
    last = [verdict]
    if found.advice:
        last += _wrapped(f"by the closed form this would fit: {found.advice}", "  ")
    blocks = [placement_lines(found.placement), [head], reliability_lines(found.reliability), last]
    return "\n\n".join("\n".join(block) for block in blocks)


def placement_lines(placement: Placement) -> list[str]:
    """Links from the inside, and which axis crosses which."""
    joins = ", ".join(f"{name} joins {f'{size:,}' if size else 'all'}" for name, size in placement.levels)
    rows = [("axis", "devices", "apart", "crosses", "at most")]
    for each in placement.axes:
        rows.append(
            (NAMES[each.axis], f"{each.size:,}", f"{each.stride:,}", each.link, f"{each.bandwidth / 1e9:,.4g} GB/s")
        )
    lines = [f"placement, from the inside: {joins}"]
    lines += [f"  {line}" for line in aligned(rows, left=(0, 3))] if placement.axes else ["  one device"]
    for warning in placement.warnings:
        lines += _wrapped(f"warning: {warning}", "  ")
    return lines


def reliability_lines(found: Reliability) -> list[str]:
    """Failure rate, checkpoints, goodput, and the same for other rates."""
    expected, faults = found.expected, found.faults
    each = found.state_bytes / found.writers
    if faults.checkpoint_seconds is None:
        how = f"{faults.device_bandwidth / 1e9:g} GB/s a device, {faults.storage_bandwidth / 1e9:,g} GB/s in all"
    else:
        how = "as given"
    steps = ""
    if found.save_interval is not None and found.step_seconds:
        steps = f"; {found.save_interval:,} steps if a step takes no more than {time_text(found.step_seconds)}"
    lost = expected.shares
    rows = [_cells(row) for row in found.table]
    table = aligned([_HEADING, *rows], left=())
    mark = found.table.index(expected) + 1
    return [
        f"failures, any of {found.devices:,} devices ending the job: {faults.mtbf_hours:,g} device-hours each, one "
        f"every {span(expected.mtbf)}",
        f"  checkpoint  {span(found.checkpoint_seconds):>8}  for {size_text(found.state_bytes)}, {size_text(each)} "
        f"from each of {found.writers:,} device{'s' * (found.writers > 1)}: {how}",
        f"  restart     {span(faults.restart_seconds):>8}  assumed",
        f"  save every  {span(expected.interval):>8}  by Daly ({span(found.young)} by Young){steps}",
        f"  goodput     {found.goodput:>8.2%}  expected; lost to checkpoints {lost.checkpoints:.2%}, to work done "
        f"again {lost.rework:.2%}, to restarts {lost.restarts:.2%}",
        "",
        *(f"{'>' if i == mark else ' '} {line}" for i, line in enumerate(table)),
    ]


def span(seconds: float) -> str:
    """`3.2 h`: three digits and the unit people would use."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return time_text(seconds)


def _cells(row: Row) -> tuple[str, ...]:
    s = row.shares
    each = (s.useful, s.checkpoints, s.rework, s.restarts)
    return (
        f"{row.device_mtbf_hours:,.0f} h", span(row.mtbf), f"{row.failures_per_day:,.1f}", span(row.interval),
        *(f"{share:.2%}" for share in each),
    )  # fmt: skip


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
