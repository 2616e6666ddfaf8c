"""List, check, trace and begin plugins: `apt-jax plugins list | check | trace | new`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from apt_jax.cli.arguments import UsageError
from apt_jax.core.errors import unknown_name

_ACTIONS = {
    "list": ("apt_jax.cli.plugins.listing", "every plugin found: version, origin, hooks, status"),
    "check": ("apt_jax.cli.plugins.check", "does a plugin, or a file, keep to the contract?"),
    "trace": ("apt_jax.cli.plugins.trace", "train, then show every hook call: who, how often, how long"),
    "new": ("apt_jax.cli.plugins.new", "write the beginning of a plugin, with a passing test"),
}


def main(argv: Sequence[str]) -> int:
    """Hands over to the action's module."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: apt-jax plugins ACTION …\n")
        print("\n".join(f"  {name:5}  {text}" for name, (_, text) in _ACTIONS.items()))
        return 0
    if argv[0] not in _ACTIONS:
        raise UsageError(f"apt-jax plugins: {unknown_name('action', argv[0], _ACTIONS)}")
    return importlib.import_module(_ACTIONS[argv[0]][0]).main(list(argv[1:]))
