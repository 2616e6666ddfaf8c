"""A plan as plain text of at most 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

from apt_jax.trainops.plan.memory import CAUSES
from apt_jax.trainops.plan.plan import Plan, Remedy

WIDTH = 120
_BAR = 40


def render(plan: Plan) -> str:
    """The whole plan."""
    blocks = [_head(plan), _memory(plan), _work(plan), _collectives(plan), _bounds(plan), _warnings(plan)]
    blocks += [_remedies(plan.remedies), [f"{plan.target}: {plan.verdict}"]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def render_refusal(error: str, remedies: Sequence[Remedy]) -> str:
    """In place of a plan that the compiler would not make."""
    return "\n\n".join("\n".join(block) for block in (_remedies(remedies), [error]) if block)


def size_text(size: float) -> str:
    """`9.28 GiB`: three digits and a unit of 1024s."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if abs(value) < 1000 else f"{value:.0f} {unit}"


def time_text(seconds: float) -> str:
    """`412 ms`: three digits."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _head(plan: Plan) -> list[str]:
    axes = [
        f"{axis} {size} ({plan.levels[axis]})" if axis in plan.levels else f"{axis} {size}"
        for axis, size in plan.mesh.items()
        if size > 1
    ]
    stage = f", zero stage {plan.zero_stage}" if plan.zero_stage else ""
    mesh = " × ".join(axes) or "one device"
    rows = plan.batch_size // plan.accumulation
    origin = f" (at most: {plan.vocab_from})" if plan.vocab_from.startswith("data.") else ""
    return [
        f"{plan.profile} on {plan.target}: {plan.devices:,} × {plan.label}, {plan.wiring}",
        f"strategy {plan.strategy}{stage}; mesh {mesh}",
        f"{plan.num_params:,} parameters, vocabulary {plan.vocab_size:,}{origin}; optimizer {plan.optimizer}, "
        f"{plan.precision} compute, remat {plan.remat}",
        f"attention {plan.kernel[0]}: {plan.kernel[1]}",
        *_wrapped("matmuls", plan.matmuls),
        *_wrapped("residuals", plan.residuals),
        f"{plan.batch_size:,} sequences of {plan.length:,} tokens per step, {plan.accumulation} × {rows:,}",
    ]


def _wrapped(name: str, texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(f"{name} {text}", WIDTH, subsequent_indent="  ")]


def _memory(plan: Plan) -> list[str]:
    total = max(1, plan.allocated.total)
    lines = ["memory of one device"]
    for cause, part in plan.parts.items():
        share = part.bytes / total
        bar = "█" * round(share * _BAR)
        name, origin = cause.replace("_", " "), part.origin
        lines.append(f"  {name:17} {size_text(part.bytes):>9}  {share:4.0%}  {origin:9}  {CAUSES[cause]:44} {bar:.24}")
    head = f"of {size_text(plan.capacity)} that a program can have ({size_text(plan.nominal)} sold)"
    lines.append(f"  {'total':17} {size_text(plan.allocated.total):>9}        compiler   {head}")
    if plan.allocated.host:
        lines.append(f"  {'in host memory':17} {size_text(plan.allocated.host):>9}")
    return lines


def _work(plan: Plan) -> list[str]:
    share = plan.flops.model / plan.devices
    extra = f", {plan.flops.device / share - 1:+.0%} against its share of the model" if share else ""
    counted = "counted in the program" if plan.flops.counted else "the model's share: this compiler's are not counted"
    return [
        "work of one step",
        f"  model    {plan.flops.model:.3g} FLOP: 6 per parameter and token, and causal attention",
        f"  device   {plan.flops.device:.3g} FLOP in matrix products, {counted}{extra if plan.flops.counted else ''}",
    ]


def _collectives(plan: Plan) -> list[str]:
    if not plan.traffic:
        return []
    rows = [("collective", "axes", "per step", "bytes of a device", "crosses", "at least")]
    for each in plan.traffic:
        branch = f" ({each.conditional:,} in branches)" if each.conditional else ""
        rows.append(
            (
                each.kind,
                "×".join(each.axes),
                f"{each.executions:,}{branch}",
                size_text(each.bytes),
                each.level,
                time_text(max(each.seconds.values(), default=0.0)),
            )
        )
    return ["communication of one step", *(f"  {line}" for line in aligned(rows))]


def _bounds(plan: Plan) -> list[str]:
    bounds = plan.bounds
    idle = f", {bounds.bubble:.0%} of it a pipeline stage's idle time" if bounds.bubble else ""
    links = ", ".join(f"{name} {time_text(seconds)}" for name, seconds in bounds.by_link.items())
    return [
        "least time of a step, at data-sheet speeds",
        f"  compute  {time_text(bounds.compute):>8}  at the {bounds.dtype} peak{idle}",
        f"  memory   {time_text(bounds.memory):>8}  state, weights and saved activations (estimated)",
        f"  network  {time_text(bounds.network):>8}  {links or 'nothing is sent'}",
        *([f"  host     {time_text(bounds.host):>8}  layers from and to its memory"] if bounds.host else []),
        f"  at least {time_text(bounds.bound):>8}  if all overlaps, limited by {bounds.limit}: MFU at most "
        f"{bounds.mfu:.0%}, {plan.tokens_per_second:,.0f} tokens/s",
        f"           {time_text(bounds.serial):>8}  if nothing does",
    ]


def _warnings(plan: Plan) -> list[str]:
    return ["warnings", *(f"  {_cut(line)}" for line in plan.warnings)] if plan.warnings else []


def _remedies(remedies: Sequence[Remedy]) -> list[str]:
    if not remedies:
        return []
    lines = ["changes tried by the compiler, the cheapest first"]
    for each in remedies:
        outcome = each.note if each.total is None else f"{size_text(each.total)}, {'fits' if each.fits else 'does not'}"
        bound = f", step ≥ {time_text(each.bound)}" if each.bound is not None else ""
        lines.append(f"  {_cut(outcome + bound)}")
        lines += textwrap.wrap(
            " ".join(each.changes), WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )
    return lines


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] | None = None) -> list[str]:
    """Columns as wide as their widest cell; those of `left` begin on the left, which None means of all."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if left is None or i in left else ">" for i in range(len(widths))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cut(text: str, width: int = WIDTH - 2) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
