"""Virtual Blackwell: what holds here, and what its modes save for a config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.core.config import parse_command_line
from apt_jax.core.registry import load_plugins

_DESCRIPTION = """\
Virtual Blackwell: quantized matmuls, recomputation and small optimizer states, by one switch.

status                                        what holds here: environment, .vbrc
report --config=PROFILE --target=DEVICE:COUNT [--config.KEY=VALUE …]
    compile the config's train step plainly and in every mode, and show what each saves and costs; half a minute a
    mode. The compilers: pip install '.[gpu-compile]' for NVIDIA, libtpu for TPU."""


def main(argv: Sequence[str]) -> int:
    """Returns 0; what cannot be reported is raised as an AptError."""
    parser = Parser("vb", _DESCRIPTION)
    parser.add_argument("what", choices=("status", "report"))
    parser.add_argument("--config", metavar="PROFILE", help="a shipped name, .py or .yaml file")
    parser.add_argument("--target", metavar="DEVICE:COUNT", help="such as h100:1")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.what == "status":
        if arguments.config or arguments.target or overrides:
            raise UsageError("apt-jax vb status: takes no options; --config and --target belong to report")
        from apt_jax.vgpu.runtime import print_stats

        print_stats()
        return 0
    for name in ("config", "target"):
        if getattr(arguments, name) is None:
            raise UsageError(f"apt-jax vb report: --{name} missing")
    config = parse_command_line([f"--config={arguments.config}", *overrides]).validated
    chosen = config.plugins
    plugins = load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
    from apt_jax.vgpu.scheduler import parse_target

    target = parse_target(arguments.target, plugins)
    # A plan takes hold of no accelerator: whatever runs on one here goes on undisturbed.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from apt_jax.trainops.plan.modes import report_modes

    found = report_modes(config, plugins, target, progress=lambda name: print(f"compiling {name} …", file=sys.stderr))
    print(json.dumps(found.to_json(), ensure_ascii=False) if arguments.json else found)
    return 0
