"""Shows a verification report: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apt_jax.trainops.eval.hlbd import ModuleScore, Report, Score

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def render_table(report: Report, console: Console | None = None, failures: int = 0) -> None:
    """Prints accuracies, mode collapses and, for each module, the first `failures` wrong answers."""
    console = console or Console()
    if console.is_terminal:
        console.print(_table(report))
    else:
        for line in _lines(report):
            _plain(console, line)
    for line in _remarks(report, failures):
        _plain(console, line)


def _table(report: Report) -> Table:
    table = Table(title="HLBD verification (greedy answers, exact match)")
    table.add_column("module")
    for name in _scores(report):
        table.add_column(name, justify="right")
        table.add_column("")
    for module in _modules(report):
        cells = [_cells(_of(score, module)) for score in _scores(report).values()]
        table.add_row(escape(module), *(cell for pair in cells for cell in pair))
    table.add_section()
    totals = [(_fraction(score.correct, score.total), score.grade) for score in _scores(report).values()]
    table.add_row("all", *(cell for pair in totals for cell in pair))
    return table


def _cells(module: ModuleScore | None) -> tuple[str, str]:
    if module is None:
        return "–", ""
    colour = _COLOURS[module.status]
    return _fraction(module.correct, module.total), f"[{colour}]{module.status}[/{colour}]"


def _lines(report: Report) -> Iterator[str]:
    for name, score in _scores(report).items():
        for module in score.modules:
            counts = f"correct={module.correct} total={module.total} accuracy={module.accuracy:.3f}"
            yield f"hlbd {name} module={module.module!r} {counts} status={module.status}"
        counts = f"correct={score.correct} total={score.total} accuracy={score.accuracy:.3f}"
        yield f"hlbd {name} all {counts} grade={score.grade}"


def _remarks(report: Report, failures: int) -> Iterator[str]:
    for name, score in _scores(report).items():
        for module in score.modules:
            for answer, times in module.collapsed_to:
                counts = f"{times} of {module.total} answered {answer!r} wrongly"
                yield f"mode collapse: {name} {module.module}: {counts}"
            for wrong in module.failures[:failures]:
                answers = f"expected {wrong.expected!r}, got {wrong.answer!r}"
                yield f"wrong: {name} {module.module}: {wrong.input!r} {answers}"


def _plain(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _scores(report: Report) -> dict[str, Score]:
    return {"seen": report.seen} | ({"heldout": report.heldout} if report.heldout else {})


def _modules(report: Report) -> list[str]:
    names = (module.module for score in _scores(report).values() for module in score.modules)
    return list(dict.fromkeys(names))


def _of(score: Score, name: str) -> ModuleScore | None:
    return next((module for module in score.modules if module.module == name), None)


def _fraction(correct: int, total: int) -> str:
    return f"{correct}/{total} {correct / total:6.1%}" if total else "–"
