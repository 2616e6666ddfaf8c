"""Show what a run would need before anything runs: the compiled step of a target, or a pipeline's schedule."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.core.config import parse_command_line
from apt_jax.core.errors import AptError, ConfigError
from apt_jax.core.registry import load_plugins

if TYPE_CHECKING:
    from apt_jax.core.config import Config
    from apt_jax.core.registry import Plugins
    from apt_jax.trainops.distributed.pipeline.table import TickTable
    from apt_jax.trainops.plan import Plan
    from apt_jax.vgpu.scheduler import Target

DOES_NOT_FIT = 1  # exit code
_COMPILE_BEST = 8  # settings that a search compiles
PAGE_WIDTH = 120  # characters, where there is no terminal that has a width

_DESCRIPTION = """\
Show what a run would need before anything runs; needs no accelerator.

--target=DEVICE:COUNT --config=PROFILE [--config.KEY=VALUE …] [--plot=FILE]
    compile the real train step for the device, as h100:16, v5p:4x4x4 or cpu:8, and show memory by cause, FLOPs,
    collectives and the least time of a step. Where it does not fit, changes that might make it fit are tried by
    the compiler, and the exit code is 1. The compilers: pip install '.[gpu-compile]' for NVIDIA, libtpu for TPU.
--target=DEVICE:COUNT --config=PROFILE --search[=K] [--no-compile]
    which mesh, remat policy, accumulation, pipeline schedule and offload to host memory: all of them by closed form,
    the best K (8) by the compiler, of which each takes as long as a plan; memory against the least time of a step, and
    the options of the fastest that fits. The batch stays; world_size becomes the target's count. The exit code is 1
    if nothing fits.
    --no-compile: by closed form alone, without a compiler for the device.
--show-schedule --config=PROFILE [--config.KEY=VALUE …]    the schedule of a profile's pipeline
--show-schedule --stages=P --microbatches=M [--schedule=NAME] [--chunks=V]    any other"""


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 for a plan that does not fit; what cannot be planned is raised as an AptError."""
    parser = Parser("plan", _DESCRIPTION)
    parser.add_argument(
        "--show-schedule", action="store_true", help="which pipeline stage does what when, its bubble and memory"
    )
    parser.add_argument("--target", metavar="DEVICE:COUNT", help="compile the train step for these devices")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="with --target: draw it as well (.png, .svg, .pdf)")
    parser.add_argument(
        "--no-changes", action="store_true", help="with --target: where it does not fit, try no changes"
    )
    parser.add_argument(
        "--search", metavar="K", type=_size, nargs="?", const=_COMPILE_BEST,
        help=f"with --target: look for the best settings and compile K ({_COMPILE_BEST}) of them",
    )  # fmt: skip
    parser.add_argument("--no-compile", action="store_true", help="with --search: by closed form alone")
    parser.add_argument("--config", metavar="PROFILE", help="a shipped name, .py or .yaml file")
    parser.add_argument("--schedule", metavar="NAME", help="gpipe, 1f1b, interleaved, zero_bubble (the config's; 1f1b)")
    parser.add_argument("--stages", type=_size, metavar="P", help="pipeline stages (pipeline_parallel)")
    parser.add_argument("--microbatches", type=_size, metavar="M", help="per step (gradient_accumulation_steps)")
    parser.add_argument("--chunks", type=_size, metavar="V", help="groups of layers per stage (pipeline_chunks; 1)")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    arguments, overrides = parser.parse_known_args(argv)
    _check_search(arguments)
    if arguments.target is not None:
        return _plan(arguments, overrides)
    if not arguments.show_schedule:
        raise UsageError("apt-jax plan: nothing to show; give --target=DEVICE:COUNT, or --show-schedule")
    if arguments.plot is not None:
        raise UsageError("apt-jax plan --show-schedule: --plot draws a plan; give --target=DEVICE:COUNT instead")
    table = _table(arguments, overrides)
    if arguments.json:
        print(json.dumps(_report(table)))
    else:
        _print(table)
    return 0


def _plan(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if arguments.show_schedule:
        raise UsageError("apt-jax plan: --show-schedule and --target are two commands; leave one of the two out")
    schedule = ("schedule", "stages", "microbatches", "chunks")
    if given := [f"--{name}" for name in schedule if getattr(arguments, name) is not None]:
        raise UsageError(f"apt-jax plan --target: {given[0]} belongs to --show-schedule; leave one of the two out")
    if arguments.config is None:
        raise UsageError("apt-jax plan --target: --config=PROFILE missing")
    if arguments.plot is not None and not arguments.plot.absolute().parent.is_dir():
        raise UsageError(f"apt-jax plan --plot={arguments.plot}: no such folder; create it first")
    config = parse_command_line([f"--config={arguments.config}", *overrides]).validated
    chosen = config.plugins
    plugins = load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
    from apt_jax.vgpu.scheduler import parse_target

    target = parse_target(arguments.target, plugins)
    # A plan takes hold of no accelerator: whatever runs on one here goes on undisturbed.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if arguments.search is not None:
        return _search(arguments, config, plugins, target)
    from apt_jax.trainops.plan import TooLargeError, make_plan, render
    from apt_jax.trainops.plan.changes import try_changes

    try:
        plan: Plan = make_plan(config, plugins, target)
    except TooLargeError as error:
        if arguments.no_changes:
            raise
        return _refused(arguments, error, config, plugins, target)
    if not plan.fits and not arguments.no_changes:
        plan = replace(plan, remedies=try_changes(plan, config, plugins, target))
    if arguments.plot is not None:
        from apt_jax.trainops.plan.picture import draw_plan

        draw_plan(plan, arguments.plot)
    print(json.dumps(plan.to_json(), ensure_ascii=False) if arguments.json else render(plan))
    return 0 if plan.fits else DOES_NOT_FIT


def _refused(arguments: argparse.Namespace, error: AptError, config: Config, plugins: Plugins, target: Target) -> int:
    """The compiler refuses for want of memory: there is no plan, but the closed form knows what to try."""
    from apt_jax.trainops.plan.changes import Shortage, try_changes
    from apt_jax.trainops.plan.text import render_refusal

    try:
        shortage = Shortage.of(config, target)
    except ConfigError:  # a model that the closed form does not know: what the compiler says is all there is to say
        raise error from None
    remedies = try_changes(shortage, config, plugins, target)
    if arguments.json:
        tried = [asdict(each) for each in remedies]
        print(json.dumps({"fits": False, "refused": str(error), "remedies": tried}, ensure_ascii=False))
    else:
        print(render_refusal(str(error), remedies))
    return DOES_NOT_FIT


def _search(arguments: argparse.Namespace, config: Config, plugins: Plugins, target: Target) -> int:
    from apt_jax.trainops.plan.search import render, search

    found = search(
        config,
        plugins,
        target,
        compile_best=None if arguments.no_compile else arguments.search,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(found.to_json(), ensure_ascii=False) if arguments.json else render(found))
    return 0 if found.fits else DOES_NOT_FIT


def _check_search(arguments: argparse.Namespace) -> None:
    if arguments.search is None:
        if arguments.no_compile:
            raise UsageError("apt-jax plan: --no-compile belongs to --search; add that")
        return
    if arguments.target is None:
        raise UsageError("apt-jax plan --search: --target=DEVICE:COUNT missing")
    others = {
        "--show-schedule": arguments.show_schedule,
        "--plot": arguments.plot,
        "--no-changes": arguments.no_changes,
    }
    if given := [name for name, value in others.items() if value]:
        raise UsageError(f"apt-jax plan: {given[0]} and --search do not go together; leave one of the two out")


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
