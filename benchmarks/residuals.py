"""What residuals in few bits cost in quality: a small language model trained with each format, seed by seed.

    python -m benchmarks.residuals --data=shakespeare.txt [--seeds=5] [--steps=300]
    python -m benchmarks.residuals --memory

The second compiles steps for H100s that need not be there (`pip install apt-jax[gpu-compile]`), and prints their bytes.

Model, data and pairing are those of `benchmarks.optimizer_states`, in bf16: each contender starts from the same weights
and sees the same batches in the same order, and the forward pass of equal weights is the same bit for bit. The row
`nudged` keeps all as computed, with a learning rate larger by a thousandth: how far two runs drift apart that ought
to be alike. Codes are the nearest, except in the row `stochastic`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.optimizer_states import NUDGED, RATE, collect, table, train_with
from benchmarks.train_cpu import hardware

BASE = "none"
CONTENDERS = (BASE, NUDGED, "nvfp4", "nvfp4 stochastic", "int8")
# A plugin, as anyone may write one: what has no key of its own is a rule.
PLUGIN = """
from apt_jax import hookimpl

apt_jax_api = "1"


@hookimpl
def apt_residual_rules(config):
    from apt_jax.vgpu.memory.residuals import FormatCodec
    from apt_jax.vgpu.quant.formats import NVFP4

    return [(".*", FormatCodec(NVFP4(), stochastic=True))]
"""
# name -> sizes, batch, length; the first is that of the study this goes back to
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "220M": (
        {
            "architecture": "llama", "hidden_size": 1024, "num_layers": 12, "num_attention_heads": 8,
            "intermediate_size": 2816, "vocab_size": 32_000, "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
        8,
    ),
    "1B": (
        {
            "architecture": "llama", "hidden_size": 2048, "num_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128_256,
            "max_position_embeddings": 1024,
        },
        4,
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a text to train on, and to hold a tenth of out")
    parser.add_argument("--memory", action="store_true", help="compile instead of training")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args(argv)
    if given.memory:
        for line in memory_table():
            print(line, flush=True)
        return
    if given.data is None:
        parser.error("give --data or --memory")
    if given.seeds < 2:
        parser.error("--seeds: a spread needs at least 2")
    losses = collect(CONTENDERS, given.seeds, lambda name, seed: train(name, Path(given.data), seed, given.steps))
    print(f"`python -m benchmarks.residuals {' '.join(sys.argv[1:] if argv is None else argv)}`")
    print(f"on {hardware()}; " + ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "optax")))
    print("", *table(losses, "residuals"), sep="\n")


def train(name: str, data: Path, seed: int, steps: int) -> float:
    """Evaluation loss after a run with these residuals, in nats per token."""
    changes: dict[str, Any] = {
        "vgpu.enabled": True,
        "vgpu.residuals": name if name in ("nvfp4", "int8") else "none",
        "training.learning_rate": RATE * (1 + 1e-3 * (name == NUDGED)),
    }
    with tempfile.TemporaryDirectory() as folder:
        if name == "nvfp4 stochastic":
            (Path(folder) / "stochastic.py").write_text(PLUGIN)
            changes["plugins.dir"] = folder
        return train_with(changes, data, seed, steps)


def memory_table() -> Iterator[str]:
    """Bytes of one device of compiled steps in Markdown."""
    from benchmarks.estimator import XLA_FLAGS

    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = XLA_FLAGS
    yield "| configuration, target | remat | residuals | arguments | temporaries | less | total |"
    yield "|---|---|---|--:|--:|--:|--:|"
    for size, devices, remat in (("220M", 1, "none"), ("1B", 8, "none"), ("220M", 1, "full")):
        before = 0.0
        for residuals in ("none", "nvfp4", "int8"):
            arguments, temporaries = compiled(size, devices, remat, residuals)
            before = before or temporaries
            figures = f"{arguments:,.0f} | {temporaries:,.0f} | {1 - temporaries / before:.1%}"
            where = f"{size}, batch {MODELS[size][1] * devices}, h100:{devices}"
            yield f"| {where} | {remat} | {residuals} | {figures} | {arguments + temporaries:,.0f} |"


def compiled(size: str, devices: int, remat: str, residuals: str) -> tuple[float, float]:
    """MiB of arguments and temporaries of one device, as `apt-jax plan` has them."""
    from apt_jax.core.config import default_config, validate
    from apt_jax.core.registry import load_plugins
    from apt_jax.trainops.plan.compiled import compile_step
    from apt_jax.vgpu.scheduler import parse_target

    model, batch = MODELS[size]
    config = default_config()
    changes = {f"model.{key}": value for key, value in {**model, "remat_policy": remat}.items()}
    changes |= {
        "training.batch_size": batch * devices,
        "training.distributed.strategy": "fsdp" if devices > 1 else "ddp",
        "vgpu.enabled": True,
        "vgpu.residuals": residuals,
    }
    config.update_from_flattened_dict(changes)
    plugins = load_plugins(enabled=(), disabled=("*",), plugins_dir=None)
    found = compile_step(validate(config, source="benchmark"), plugins, parse_target(f"h100:{devices}", plugins))
    return found.allocated.arguments / 2**20, found.allocated.temporaries / 2**20


if __name__ == "__main__":
    main()
