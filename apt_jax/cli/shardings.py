"""Show where each parameter of a profile's model lies, and what it costs a device."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from apt_jax.cli.arguments import Parser
from apt_jax.core.config import Config, RunArguments, parse_command_line
from apt_jax.core.configured import configured
from apt_jax.core.registry import load_plugins

if TYPE_CHECKING:
    from apt_jax.trainops.distributed.report import Bytes, Placement, ShardingReport

LARGE = 2**20  # bytes of a parameter from which on its replication is worth a second look
LARGE_FLAG, SMALL_FLAG = "REPLICATED", "replicated"
_SIZES = ("data", "fsdp", "tensor", "pipeline", "expert", "context")
_HEADINGS = ("parameter", "shape", "logical axis/mesh axes that cut it", "weights", "gradient", "optim.")

_DESCRIPTION = """\
Show where each parameter lies and what it, its gradient and its optimizer state cost a device.

--config=PROFILE [--config.KEY=VALUE …]    also --plugins=NAMES and --plugins_dir=DIR, as in training

Needs no accelerator, whatever the number of devices: nothing is allocated. Activations are not counted."""


def main(argv: Sequence[str]) -> int:
    """Returns 0; what the mesh does not divide, or a rule does not know, is raised as in training."""
    parser = Parser("shardings", _DESCRIPTION)
    parser.add_argument("--config", metavar="PROFILE", required=True, help="a shipped name, .py or .yaml file")
    parser.add_argument(
        "--devices", type=_count, metavar="N", help="devices present; default: world_size, else the sizes' product"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON, in bytes")
    arguments, overrides = parser.parse_known_args(argv)
    given = parse_command_line([f"--config={arguments.config}", *overrides])
    config = given.validated
    report = _report(config, arguments.devices or _devices(config))
    if arguments.json:
        print(json.dumps(_as_json(report, config), ensure_ascii=False))
    else:
        _print(report, given)
    return 0


def _devices(config: Config) -> int:
    """How many devices the config speaks of; sizes left open count as 1."""
    layout = config.training.distributed
    return layout.world_size or math.prod(getattr(layout, f"{name}_parallel") or 1 for name in _SIZES)


def _report(config: Config, devices: int) -> ShardingReport:
    # Shapes are all that is asked for; taking hold of an accelerator would disturb what runs there.
    os.environ["JAX_PLATFORMS"] = "cpu"
    chosen = config.plugins
    plugins = load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
    from apt_jax.trainops.distributed.report import described_devices, report_shardings
    from apt_jax.trainops.engine.setup import build_setup

    config = configured(config, plugins)
    program = build_setup(config, plugins, _vocabulary(config)[0], devices=described_devices(devices)).program
    return report_shardings(program.strategy, program.abstract_state().opt_state, program.memory_kinds.opt_state)


def _vocabulary(config: Config) -> tuple[int, str]:
    """Rows of the embedding, and the key that says so: no tokenizer is trained here."""
    if config.model.vocab_size:
        return config.model.vocab_size, "model.vocab_size"
    return config.data.tokenizer_vocab_size, "data.tokenizer_vocab_size"


def _as_json(report: ShardingReport, config: Config) -> dict[str, object]:
    size, key = _vocabulary(config)
    placements = [{**asdict(p), "spec": p.spec} for p in report.placements]
    return {
        "profile": config.profile.name,
        "devices": report.devices,
        "num_params": report.num_params,
        "vocab_size": size,
        "vocab_size_from": key,
        **asdict(report),
        "placements": placements,
    }


def _header(report: ShardingReport, config: Config) -> list[str]:
    sizes = " × ".join(f"{axis} {size}" for axis, size in report.sizes.items() if size > 1)
    mesh = f"mesh {sizes} = {report.devices} devices" if sizes else "one device"
    size, key = _vocabulary(config)
    origin = f"at most: {key}" if key.startswith("data.") else key
    stage = f", zero stage {report.zero_stage}" if report.sizes["fsdp"] > 1 else ""
    sequence = ", sequence parallel" if report.sequence_parallel else ""
    return [
        f"{config.profile.name}: strategy {report.strategy}{stage}{sequence}; {mesh}",
        f"{report.num_params:,} parameters; vocabulary {size:,} ({origin}); optimizer {config.training.optimizer}",
    ]


def _row(placement: Placement) -> tuple[str, ...]:
    dimensions = (
        "/".join(filter(None, (name or "-", "+".join(cut))))
        for name, cut in zip(placement.axes, placement.mesh_axes, strict=True)
    )
    shape = "×".join(map(str, placement.shape)) or "scalar"
    where = " ".join([*dimensions, *filter(None, [_flag(placement)])])
    return placement.path, shape, where, *_sizes(placement.per_device)


def _flag(placement: Placement) -> str:
    if not placement.replicated:
        return ""
    return LARGE_FLAG if placement.per_device.parameters >= LARGE else SMALL_FLAG


def _totals(report: ShardingReport) -> list[tuple[str, ...]]:
    device, whole = report.per_device, report.whole
    return [
        ("per device", "", f"together {_text(device.total)}", *_sizes(device)),
        ("whole model", "", f"together {_text(whole.total)}", *_sizes(whole)),
    ]


def _footer(report: ShardingReport) -> list[str]:
    kept = [p for p in report.placements if p.replicated]
    lines = [f"of a device's share, in its host's memory: {_text(report.host.total)}"] if report.host.total else []
    if not kept:
        return lines
    held = sum(p.per_device.parameters for p in kept)
    large = sum(p.per_device.parameters >= LARGE for p in kept)
    note = f"; {large} of them {LARGE_FLAG}: {_text(LARGE)} or more" if large else ""
    return [*lines, f"whole on every device: {len(kept)} of {len(report.placements)} parameters, {_text(held)}{note}"]


def _print(report: ShardingReport, given: RunArguments) -> None:
    head = [*(f"{given.source}: {note}" for note in given.notes), *_header(report, given.validated), ""]
    heading, *rows = _aligned([_HEADINGS, *map(_row, report.placements), *_totals(report)])
    rows, totals = rows[: len(report.placements)], rows[len(report.placements) :]
    tail = ["", *totals, *_footer(report)]
    if not sys.stdout.isatty():
        print("\n".join([*head, heading, *rows, *tail]))
        return
    from rich.console import Console
    from rich.text import Text

    styles = {LARGE_FLAG: "bold red", SMALL_FLAG: "dim"}
    page = Text("\n").join(
        [
            *map(Text, head),
            Text(heading, "bold"),
            *(Text(row, styles.get(_flag(p), "")) for p, row in zip(report.placements, rows, strict=True)),
            *map(Text, tail),
        ]
    )
    Console().print(page, soft_wrap=True)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell, the figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (f"{c:{w}}" if i < 3 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells)

    return [*map(line, rows)]


def _sizes(held: Bytes) -> tuple[str, str, str]:
    return _text(held.parameters), _text(held.gradients), _text(held.optimizer)


def _text(size: int) -> str:
    """`97.7 MiB`: three digits (four below 1 of the next unit) and a unit of 1024s."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)
