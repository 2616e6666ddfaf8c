"""Show what a layout means before anything runs: the pipeline's schedule."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.core.config import parse_command_line
from apt_jax.core.errors import ConfigError

if TYPE_CHECKING:
    from apt_jax.trainops.distributed.pipeline.table import TickTable

PAGE_WIDTH = 120  # characters, where there is no terminal that has a width

_DESCRIPTION = """\
Show what a layout means before anything runs; needs no accelerator.

--show-schedule --config=PROFILE [--config.KEY=VALUE …]    the schedule of a profile's pipeline
--show-schedule --stages=P --microbatches=M [--schedule=NAME] [--chunks=V]    any other"""


def main(argv: Sequence[str]) -> int:
    """Returns 0; sizes that make no pipeline are raised as ConfigError."""
    parser = Parser("plan", _DESCRIPTION)
    parser.add_argument(
        "--show-schedule", action="store_true", help="which pipeline stage does what when, its bubble and memory"
    )
    parser.add_argument("--config", metavar="PROFILE", help="a shipped name, .py or .yaml file")
    parser.add_argument("--schedule", metavar="NAME", help="gpipe, 1f1b, interleaved, zero_bubble (the config's; 1f1b)")
    parser.add_argument("--stages", type=_size, metavar="P", help="pipeline stages (pipeline_parallel)")
    parser.add_argument("--microbatches", type=_size, metavar="M", help="per step (gradient_accumulation_steps)")
    parser.add_argument("--chunks", type=_size, metavar="V", help="groups of layers per stage (pipeline_chunks; 1)")
    parser.add_argument("--json", action="store_true", help="the schedule's table and figures as JSON")
    arguments, overrides = parser.parse_known_args(argv)
    if not arguments.show_schedule:
        raise UsageError("apt-jax plan: nothing to show; --show-schedule, the pipeline's schedule, is what it can show")
    table = _table(arguments, overrides)
    if arguments.json:
        print(json.dumps(_report(table)))
    else:
        _print(table)
    return 0


def _table(arguments: argparse.Namespace, overrides: Sequence[str]) -> TickTable:
    """The table asked for: the options', else the config's values."""
    from apt_jax.trainops.distributed.pipeline.table import make_table

    if arguments.config is None:
        if overrides:
            raise UsageError(f"apt-jax plan: unexpected {overrides[0]} without --config=PROFILE")
        given = {"schedule": "1f1b", "stages": None, "microbatches": None, "chunks": 1}
    else:
        training = parse_command_line([f"--config={arguments.config}", *overrides]).validated.training
        given = {
            "schedule": training.distributed.pipeline_schedule,
            "stages": training.distributed.pipeline_parallel,
            "microbatches": training.gradient_accumulation_steps,
            "chunks": training.distributed.pipeline_chunks,
        }
    given |= {name: value for name in given if (value := getattr(arguments, name)) is not None}
    missing = [f"--{name}=N" for name, value in given.items() if value is None]
    if missing:
        raise UsageError(f"apt-jax plan --show-schedule: {' and '.join(missing)} missing; or give --config=PROFILE")
    if given["stages"] == 1:
        raise ConfigError(
            "training.distributed.pipeline_parallel is 1, which makes no pipeline; set it, or --stages, to 2 or more"
        )
    return make_table(**given)


def _report(table: TickTable) -> dict[str, object]:
    """The table, and its figures at the usual costs."""
    from apt_jax.trainops.distributed.pipeline.cost import Costs, bubble, bubble_formula, table_time

    costs = Costs()
    formula = bubble_formula(table.schedule, table.stages, table.microbatches, table.chunks, costs)
    return {
        **table.to_json(),
        "time": float(table_time(table, costs)),
        "bubble": float(bubble(table, costs)),
        "bubble_formula": None if formula is None else float(formula),
        "stash_per_stage": list(table.stash_per_stage),
        "deferred_per_stage": list(table.deferred_per_stage),
    }


def _print(table: TickTable) -> None:
    from apt_jax.trainops.distributed.pipeline.picture import coloured, draw

    if not sys.stdout.isatty():
        print(draw(table, width=PAGE_WIDTH))
        return
    from rich.console import Console

    width = shutil.get_terminal_size().columns
    Console().print(coloured(draw(table, width=width)), soft_wrap=True)


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)
