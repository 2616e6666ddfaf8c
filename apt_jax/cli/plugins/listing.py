"""`apt-jax plugins list`: every plugin found and what became of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from apt_jax.cli.arguments import Parser
from apt_jax.cli.plugins.selection import add_selection, load_selection
from apt_jax.core.registry import PluginInfo


def main(argv: Sequence[str]) -> int:
    """Prints a table in call order, or JSON. A broken plugin is listed, not raised."""
    parser = Parser("plugins list", "Every plugin found, in call order: version, origin, hooks, status.")
    parser.add_argument("--json", action="store_true", help="all that is known, as a JSON list")
    add_selection(parser)
    arguments = parser.parse_args(argv)
    known = load_selection(arguments).known
    if arguments.json:
        print(json.dumps([info.as_dict() for info in known], indent=2, ensure_ascii=False))
    else:
        print(table([("name", "version", "from", "status", "hooks"), *map(_row, known)]))
    return 0


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the last one ragged."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(info: PluginInfo) -> tuple[str, ...]:
    origin = info.dist or info.origin
    hooks = ", ".join(hook.removeprefix("apt_") for hook in info.hooks)
    return info.name, info.version or "-", origin, info.status, hooks or "-"
