"""A search as plain text of at most 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from apt_jax.trainops.plan.search.result import Entry, SearchResult
from apt_jax.trainops.plan.text import WIDTH, aligned, size_text, time_text

_HEADS = (
    "", "mesh", "remat", "micro", "schedule", "a device", "its host", "step ≥", "serial", "MFU ≤", "tokens/s ≤",
    "limited by",
)  # fmt: skip
_HOST = _HEADS.index("its host")


def render(found: SearchResult) -> str:
    """The Pareto list, how it came about, and the options of its first entry."""
    blocks = [_head(found), _table(found), _options(found), _pruned(found), [f"note: {note}" for note in found.notes]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _head(found: SearchResult) -> list[str]:
    return [
        f"{found.profile} on {found.target}: {found.label}, {found.wiring}; {size_text(found.capacity)} for a program",
        f"{found.batch_size:,} sequences of {found.length:,} tokens per step, whatever the setting",
    ]


def _table(found: SearchResult) -> list[str]:
    source = "by the compiler" if found.compiling else "CLOSED FORM, nothing was compiled"
    if not found.best:
        return [f"nothing fits ({source})", *_refused(found)]
    listed = list(found.best)
    if found.own is not None and found.own not in listed:
        listed.append(found.own)
    rows = [_HEADS, *(_row(found, number, entry) for number, entry in enumerate(listed, start=1))]
    if any(entry.host_bytes for entry in listed):  # a column more
        rows = [(row[0], row[1].replace(" × ", "×"), *row[2:]) for row in rows]
    else:
        rows = [(*row[:_HOST], *row[_HOST + 1 :]) for row in rows]
    lines = [f"memory against the least time of a step: all that no other setting beats in both ({source})"]
    lines += [f"  {line}" for line in aligned(rows)]
    if found.own is not None:
        lines.append("  * the config as it is" + ("" if found.own in found.best else _why_worse(found, found.own)))
    lines.append("  micro: microbatches of a step; step: everything overlaps; serial: nothing does")
    return [*lines, *_agreement(found), *_refused(found)]


def _row(found: SearchResult, number: int, entry: Entry) -> tuple[str, ...]:
    candidate, bounds = entry.candidate, entry.roofline
    listed = entry in found.best
    return (
        f"{number if listed else '-'}{'*' if entry.own else ''}",
        candidate.mesh,
        candidate.config.model.remat_policy,
        str(candidate.config.training.gradient_accumulation_steps),
        candidate.schedule or "-",
        size_text(entry.bytes),
        size_text(entry.host_bytes) if entry.host_bytes else "-",
        time_text(bounds.bound),
        time_text(bounds.serial),
        f"{bounds.mfu:.0%}",
        f"{found.tokens_per_second(entry):,.0f}",
        bounds.limit,
    )


def _why_worse(found: SearchResult, own: Entry) -> str:
    if own.refused:
        return ", which the compiler refuses"
    return ", which does not fit" if own.bytes > found.capacity else ", which another beats in both"


def _agreement(found: SearchResult) -> list[str]:
    """How far the closed form was off where it can be told."""
    done = [entry for entry in found.tried if entry.compiled]
    if not done:
        return []
    memory = max(abs(entry.sketch.memory / entry.bytes - 1) for entry in done)
    bound = max(abs(entry.sketch.bounds.bound / entry.roofline.bound - 1) for entry in done if entry.roofline.bound)
    return [
        f"  all figures of the table are of compiled programs; on the {len(done)} compiled the closed form that chose "
        "them",
        f"  was off by up to {memory:.0%} in memory and {bound:.0%} in time",
    ]


def _refused(found: SearchResult) -> list[str]:
    lines = []
    for entry in found.tried:
        if entry.refused:
            lines.append(f"  refused: {entry.candidate}: {entry.refused}")
        elif entry.compiled and entry.bytes > found.capacity:
            lines.append(f"  does not fit: {entry.candidate}: {size_text(entry.bytes)}")
    return [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines]


def _options(found: SearchResult) -> list[str]:
    if not found.best:
        return []
    if not found.options:
        return ["the first is the config as it is"]
    return ["the first, as options:", *_wrapped(" ".join(found.options))]


def _pruned(found: SearchResult) -> list[str]:
    left = found.considered - sum(found.pruned.values())
    compiled = sum(1 for entry in found.tried if entry.compiled or entry.refused)
    then = f"{compiled} of them compiled" if found.compiling else "none compiled"
    lines = [f"{found.considered:,} settings, {left:,} left after the closed form, {then}; the others:"]
    width = max((len(f"{count:,}") for count in found.pruned.values()), default=0)
    return [*lines, *(f"  {count:{width},}  {reason}" for reason, count in found.pruned.items())]


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
