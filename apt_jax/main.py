"""The training entry: `python -m apt_jax.main --config=configs/playground.py --workdir=runs/playground`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from apt_jax.core.config import RunArguments, parse_command_line
from apt_jax.core.errors import AptError
from apt_jax.core.logs import set_up_logging
from apt_jax.core.registry import load_plugins

INTERRUPTED = 130  # the shell's code for SIGINT; SIGTERM gives 143


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says.

    Returns:
      0 when the run finished or stopped early; 2 for wrong usage or input, with one line on standard
      error; 3 when the loss diverged; 4 when another process of the job was lost or failed; 130 or 143
      after SIGINT or SIGTERM, with a checkpoint.
    """
    set_up_logging()
    try:
        return run(parse_command_line(sys.argv[1:] if argv is None else argv))
    except AptError as error:
        print(f"apt_jax: error: {error}", file=sys.stderr)
        return error.exit_code


def run(arguments: RunArguments) -> int:
    """As `main`, for parsed arguments; errors are raised."""
    from apt_jax.trainops.distributed.host import enable_compilation_cache, prepare_host

    prepare_host()  # before jax allocates anything
    from apt_jax.trainops.distributed.processes import setup_distributed
    from apt_jax.trainops.distributed.watch import ending_together

    processes = setup_distributed()
    with ending_together():
        if processes.index == 0:
            for note in arguments.notes:
                print(f"{arguments.source}: {note}")
            if processes.count > 1:
                print(f"processes: {processes}", flush=True)
        chosen = arguments.validated.plugins
        plugins = load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
        enable_compilation_cache()
        from apt_jax.trainops.engine.trainer import Trainer

        trainer = Trainer.from_config(arguments.validated, workdir=arguments.workdir, plugins=plugins)
        report = trainer.train(
            stop_at_step=arguments.stop_at_step, accept_config_change=arguments.accept_config_change
        )
    return {"SIGINT": INTERRUPTED, "SIGTERM": 143}.get(str(report["status"]), 0)


if __name__ == "__main__":
    sys.exit(main())
