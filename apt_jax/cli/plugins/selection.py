"""The options `--plugins` and `--plugins_dir`, as in training."""

from __future__ import annotations

import argparse

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.core.registry import Plugins, load_plugins
from apt_jax.core.registry.loading import ALL


def add_selection(parser: Parser) -> None:
    """Adds both options."""
    parser.add_argument("--plugins", default="", metavar="a,-b", help="only a; never b; none: built-ins only")
    parser.add_argument("--plugins_dir", metavar="DIR", help="folder of single-file plugins")


def load_selection(arguments: argparse.Namespace) -> Plugins:
    """Loads what was chosen; every problem becomes a status."""
    names = [name.strip() for name in arguments.plugins.split(",")] if arguments.plugins else []
    if not all(name.lstrip("-") for name in names):
        raise UsageError(
            f"--plugins={arguments.plugins}: an empty name; write --plugins=a,-b or --plugins=none"
        )
    if names == ["none"]:
        names = [f"-{ALL}"]
    enabled = [name for name in names if not name.startswith("-")]
    disabled = [name[1:] for name in names if name.startswith("-")]
    return load_plugins(enabled, disabled, arguments.plugins_dir, strict=False)
