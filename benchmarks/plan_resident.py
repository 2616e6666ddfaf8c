"""The memory that a plan for the CPU predicts, beside what a process that runs the step adds to itself.

    python -m benchmarks.plan_resident [--config=playground] [--config.KEY=VALUE …]

A process of its own makes the plan, compiles the step, and notes its resident memory; then it makes state and
batches as a run does and takes eight steps. The most that it held meanwhile, less what it began with, stands beside
the plan's total. Compilation is left out: XLA's own memory would be most of what is seen. So is `prepare_host`, which
keeps freed memory for the sake of speed. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

CODE = '''
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = ""
import ctypes, json, sys
import jax
import numpy as np
from dataclasses import replace
from apt_jax.core.config import parse_command_line
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.data.bundle import build_data
from apt_jax.trainops.engine.setup import build_setup
from apt_jax.trainops.plan import make_plan
from apt_jax.vgpu.scheduler import parse_target

def resident(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

plugins = load_plugins(enabled=(), disabled=("*",), plugins_dir=None)
config = parse_command_line(sys.argv[1:]).validated
data = build_data(config, plugins, workdir=None, sources=(None, None), tokenizer=None, began_with=None)
vocab_size = data.tokenizer.vocab_size  # that of the plan, which trains no tokenizer, is the largest there may be
config = replace(config, model=replace(config.model, vocab_size=vocab_size))
planned = make_plan(config, plugins, parse_target("cpu:1", plugins)).allocated.total
setup = build_setup(config, plugins, vocab_size)
program = setup.program
batch = program.abstract_batch(config.data.sequence_length or config.model.max_position_embeddings)
step = program.train_step.lower(program.abstract_state(), batch).compile()
first = jax.tree.map(np.asarray, setup.init_params())
ctypes.CDLL(None).malloc_trim(0)
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the high-water mark begins anew
state = program.init_state(first)
del first
batches = data.train.iterate(0, 8, program.feed.rows)
with batches:
    for batch in batches:
        state, metrics = step(state, program.put_batch(batch))
        jax.block_until_ready(metrics)
print(json.dumps({"planned": planned, "added": resident("VmHWM") - before}))
'''


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    options = list(sys.argv[1:] if argv is None else argv)
    if not any(option.startswith("--config=") for option in options):
        options.insert(0, "--config=playground")
    done = subprocess.run([sys.executable, "-c", CODE, *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    planned, added = found["planned"], found["added"]
    print(f"planned {planned / 2**20:.0f} MiB, added {added / 2**20:.0f} MiB: {planned / added - 1:+.1%}")


if __name__ == "__main__":
    main()
