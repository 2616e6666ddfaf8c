"""Plan a model on very many devices: layout, links, the compiled step, and what failures leave of the time."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.core.errors import ConfigError

if TYPE_CHECKING:
    from apt_jax.trainops.extreme import Faults

DOES_NOT_FIT = 1  # exit code
_OVERRIDE = "--config."
_DESCRIPTION = """\
Plan a model on very many devices, none of which need exist: place its axes on the links, compile the real train step
for all of them, and reckon with failures. Where it does not fit, the exit code is 1.

--model=175B --world-size=99968                                      a layout that fits is chosen
--model=175B --world-size=99968 --parallelism=data=781,fsdp=16,tensor=8
--model=pro  --world-size=1024 --device=b200 --rack-size=72 [--config.KEY=VALUE …]

The compilers: pip install '.[gpu-compile]' for NVIDIA, libtpu for TPU."""


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 for a plan that does not fit; what cannot be planned is raised as an AptError."""
    parser = Parser("extreme", _DESCRIPTION)
    parser.add_argument("--model", required=True, help="a size such as 175B, a shipped profile, a .py or .yaml file")
    parser.add_argument("--world-size", required=True, type=_count, metavar="N", help="devices")
    parser.add_argument("--parallelism", metavar="AXIS=N,…", default="", help="devices per axis; left out: chosen")
    parser.add_argument("--device", default="h100", help="registered name (h100)")
    parser.add_argument("--batch-size", type=_count, metavar="N", help="sequences per step")
    parser.add_argument("--accumulation", type=_count, metavar="N", help="microbatches per step")
    parser.add_argument("--sequence-length", type=_count, metavar="N", help="tokens per row")
    wires = parser.add_argument_group("the machine's network")
    wires.add_argument("--rack-size", type=_count, metavar="N", help="devices that the fastest link joins, such as 72")
    wires.add_argument("--datacenters", type=_count, default=1, metavar="N", help="that hold the machine (1)")
    wires.add_argument("--gpus-per-datacenter", type=_count, metavar="N", help="default: an equal share")
    faults = parser.add_argument_group("failures")
    faults.add_argument("--mtbf", type=float, metavar="HOURS", help="between failures of one device (50000)")
    faults.add_argument("--restart", type=float, metavar="SECONDS", help="from a failure until steps go on (600)")
    faults.add_argument("--checkpoint", type=float, metavar="SECONDS", help="of one checkpoint; default: by size")
    faults.add_argument("--storage", type=float, metavar="GB/S", help="that storage takes in all (2000)")
    faults.add_argument("--device-storage", type=float, metavar="GB/S", help="that one device writes (2)")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [text for text in rest if not (text.startswith(_OVERRIDE) and "=" in text)]:
        parser.error(f"unrecognized arguments: {unknown[0]}")
    # A plan takes hold of no accelerator: whatever runs on one here goes on undisturbed.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from apt_jax.trainops.extreme import ExtremeScaleTrainer

    found = ExtremeScaleTrainer(
        model=arguments.model,
        world_size=arguments.world_size,
        parallelism_config=_axes(arguments.parallelism),
        device=arguments.device,
        batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.accumulation,
        sequence_length=arguments.sequence_length,
        rack_size=arguments.rack_size,
        datacenters=arguments.datacenters,
        gpus_per_datacenter=arguments.gpus_per_datacenter,
        faults=_faults(arguments),
        overrides=[text.removeprefix(_OVERRIDE) for text in rest],
    ).plan()
    print(json.dumps(found.to_json(), ensure_ascii=False) if arguments.json else found)
    return 0 if found.fits else DOES_NOT_FIT


def _axes(text: str) -> dict[str, Any]:
    """`data=3125,tensor=8`: whole numbers, and words for what is no size."""
    axes: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\w+)=(\w+)\s*", item)
        if match is None:
            raise UsageError(f"apt-jax extreme --parallelism: '{item}' is not AXIS=N, as data=3125,tensor=8")
        name, value = match.groups()
        if name in axes:
            raise ConfigError(f"parallelism_config: {name} is given twice; leave one of them out")
        axes[name] = int(value) if value.isdigit() else {"true": True, "false": False}.get(value.lower(), value)
    return axes


def _faults(arguments: argparse.Namespace) -> Faults:
    from apt_jax.trainops.extreme import Faults

    giga = 1e9
    given = {
        "mtbf_hours": arguments.mtbf,
        "restart_seconds": arguments.restart,
        "checkpoint_seconds": arguments.checkpoint,
        "storage_bandwidth": arguments.storage and arguments.storage * giga,
        "device_bandwidth": arguments.device_storage and arguments.device_storage * giga,
    }
    return Faults(**{name: value for name, value in given.items() if value is not None})


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)
