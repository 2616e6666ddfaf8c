"""The process that compiles for another: a pickled `Request` on standard input, the answer in a file.

python -m apt_jax.trainops.extreme.worker ANSWER < REQUEST
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from apt_jax.core.config import validate
from apt_jax.core.errors import AptError
from apt_jax.core.registry import compare_records, load_plugins
from apt_jax.trainops.extreme.compile import Request
from apt_jax.trainops.plan import Plan, PlanError, make_plan


def answer(request: Request) -> Plan:
    """Compiles what is asked for.

    Raises:
      PlanError: other plugins were loaded here than there.
      AptError: as `make_plan`.
    """
    config = validate(request.config, source="ExtremeScaleTrainer")
    chosen = config.plugins
    plugins = load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
    if changes := compare_records(request.plugins, plugins.as_records()):
        here = "" if request.target.device.vendor == "cpu" else ", or start with JAX_PLATFORMS=cpu"
        raise PlanError(
            f"--target={request.target}: plans are compiled in a process of their own, which loads other plugins: "
            f"{changes[0]}; name them in the config's `plugins`{here}"
        )
    return make_plan(config, plugins, request.target)


def main() -> int:
    """Returns 0 with a plan in the file, else 2 with an AptError there."""
    request = pickle.load(sys.stdin.buffer)
    try:
        found: Plan | AptError = answer(request)
    except AptError as error:
        found = error
    Path(sys.argv[1]).write_bytes(pickle.dumps(found))
    return 2 if isinstance(found, AptError) else 0


if __name__ == "__main__":
    sys.exit(main())
