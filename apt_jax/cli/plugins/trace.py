"""`apt-jax plugins trace`: a training run with every hook call counted and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apt_jax.cli.plugins.listing import table
from apt_jax.core.registry import HookCall, on_hookcall

_USAGE = """\
usage: apt-jax plugins trace -- --config=… --workdir=… …

Trains as `python -m apt_jax.main` would with these arguments, then prints per hook and plugin: calls,
mean and total time, failures, and the last result."""


@dataclass
class Tally:
    """All calls of one hook in one plugin."""

    calls: int = 0
    seconds: float = 0.0
    failures: int = 0
    last: str = ""

    def add(self, call: HookCall) -> None:
        self.calls += 1
        self.seconds += call.seconds
        self.failures += call.error is not None
        self.last = f"{type(call.error).__name__}: {call.error}" if call.error else summary(call.result)


def main(argv: Sequence[str]) -> int:
    """Returns the run's own exit code."""
    words = list(argv[1:] if argv[:1] == ["--"] else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    from apt_jax.main import main as train

    tallies: dict[tuple[str, str], Tally] = {}

    def note(call: HookCall) -> None:
        tallies.setdefault((call.hook, call.plugin), Tally()).add(call)

    try:
        with on_hookcall(note):
            return train(words)
    finally:
        print(report(tallies))


def report(tallies: Mapping[tuple[str, str], Tally]) -> str:
    """The table, in order of the first call."""
    rows = [("hook", "plugin", "calls", "mean µs", "total ms", "failed", "last result")]
    rows += [
        (
            hook,
            plugin,
            str(each.calls),
            f"{each.seconds / each.calls * 1e6:.1f}",
            f"{each.seconds * 1e3:.2f}",
            str(each.failures),
            each.last,
        )
        for (hook, plugin), each in tallies.items()
    ]
    return table(rows)


def summary(result: Any, longest: int = 60) -> str:
    """A result in a few words; arrays and models are named, not shown."""
    if result is None or isinstance(result, bool | int | float | str):
        text = repr(result)
    elif isinstance(result, Mapping):
        text = "{" + ", ".join(map(str, result)) + "}"
    elif isinstance(result, list | tuple):
        text = f"{type(result).__name__} of {len(result)}"
    else:
        text = type(result).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
