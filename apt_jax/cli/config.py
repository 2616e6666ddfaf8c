"""List all configuration keys, show or check a profile."""

from __future__ import annotations

import json
from collections.abc import Sequence

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.core.config import describe_keys, parse_command_line, to_dict

_DESCRIPTION = """\
keys [TEXT]              every key (that contains TEXT): type, default, meaning
show PROFILE [--config.KEY=VALUE …]    the resulting configuration as JSON
check PROFILE [--config.KEY=VALUE …]   nothing but the first mistake, if there is one"""


def main(argv: Sequence[str]) -> int:
    """Returns 0; a mistake in a profile is raised as ConfigError."""
    parser = Parser("config", _DESCRIPTION)
    parser.add_argument("action", choices=("keys", "show", "check"))
    parser.add_argument(
        "what", nargs="?", help="a text for keys; a shipped name, .py or .yaml file otherwise"
    )
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.action == "keys":
        if overrides:
            raise UsageError(f"apt-jax config keys: unexpected {overrides[0]}")
        for line in describe_keys():
            if arguments.what is None or arguments.what in line.split()[0]:
                print(line)
        return 0
    if arguments.what is None:
        raise UsageError(f"apt-jax config {arguments.action}: name a profile; see apt-jax profiles")
    given = parse_command_line([f"--config={arguments.what}", *overrides])
    for note in given.notes:
        print(f"{given.source}: {note}")
    if arguments.action == "show":
        print(json.dumps(to_dict(given.validated), indent=2, ensure_ascii=False))
    else:
        print(f"{given.source}: valid")
    return 0
