"""What residuals came to, for the run header."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.memory.residuals.policy import Entry, Residuals


def describe(residuals: Sequence[Residuals], entries: Collection[Entry]) -> list[str]:
    """A line for each codec with the arrays kept by it, and one for those that are kept as they are.

    Args:
      residuals: installed.
      entries: recorded while the step was traced.

    Raises:
      ConfigError: a rule that no array uses.
    """
    for each in residuals:
        mine = [entry for entry in entries if entry.name.startswith(f"{each.where}/")]
        used = {entry.rule for entry in mine}
        for number, (pattern, _) in enumerate(each.rules):
            if number not in used:
                names = ", ".join(dict.fromkeys(entry.name for entry in mine)) or "none"
                raise ConfigError(
                    f"residual rule '{pattern}' applies to no array; what is kept for the backward pass is {names}, "
                    "each taken by the first rule that matches its whole name"
                )
    lines = []
    for codec in dict.fromkeys(entry.codec for entry in entries):
        those = [entry for entry in entries if entry.codec == codec]
        names = ", ".join(dict.fromkeys(entry.name for entry in those))
        before, after = (sum(getattr(entry, which) for entry in those) for which in ("before", "after"))
        lines.append(f"kept as computed: {names}" if codec is None else f"{codec}, {after / before:.0%}: {names}")
    return lines
