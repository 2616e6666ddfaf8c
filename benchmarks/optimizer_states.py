"""What compressed optimizer states cost in quality: a small language model trained with each, seed by seed.

    python -m benchmarks.optimizer_states --data=shakespeare.txt [--seeds=5] [--steps=300] [--beta2=0.999]
    python -m benchmarks.optimizer_states --memory

The second compiles steps for H100s that need not be there (`pip install apt-jax[gpu-compile]`), and prints their bytes.

Each optimizer starts from the same weights and sees the same batches in the same order. The gap is formed seed by
seed against AdamW with float32 moments; given are its mean, standard error and range over the seeds. Training is
chaotic, so that any difference grows: the row `nudged` is float32 AdamW with a learning rate larger by a thousandth,
and shows how far two runs drift apart that ought to be alike. What is not larger than its spread is not told apart.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.train_cpu import hardware

BASE, NUDGED = "adamw", "nudged"
CONTENDERS = (BASE, NUDGED, "adamw8bit", "adamw_bf16")
RATE = 2e-3
SETTINGS: dict[str, Any] = {
    "model.architecture": "llama",
    "model.hidden_size": 128,
    "model.num_layers": 4,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 384,
    "model.max_position_embeddings": 128,
    "training.batch_size": 4,
    "training.loss_chunk": 1024,
    "training.eval_interval": 0,
    "training.eval_steps": 64,
    "training.sample_tokens": 0,
    "training.distributed.world_size": 1,
    "data.tokenizer": "bpe",
    "data.tokenizer_vocab_size": 512,
    "data.packing": "split",
    "data.eval_fraction": 0.1,
    "checkpoints.save_interval": 0,
    "monitoring.console": "off",
    "monitoring.plot": False,
    "monitoring.tensorboard": False,
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a text to train on, and to hold a tenth of out")
    parser.add_argument("--memory", action="store_true", help="compile instead of training")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--beta2", type=float, default=0.999, help="decay of the second moment")
    given = parser.parse_args(argv)
    if given.memory:
        print(*memory_table(), sep="\n")
        return
    if given.data is None:
        parser.error("give --data or --memory")
    if given.seeds < 2:
        parser.error("--seeds: a spread needs at least 2")
    losses = collect(
        CONTENDERS, given.seeds, lambda name, seed: train(name, Path(given.data), seed, given.steps, given.beta2)
    )
    print(f"`python -m benchmarks.optimizer_states {' '.join(sys.argv[1:] if argv is None else argv)}`")
    print(f"on {hardware()}; " + ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "optax")))
    print("", *table(losses, "optimizer"), sep="\n")


def collect(contenders: Sequence[str], seeds: int, train: Callable[[str, int], float]) -> dict[str, list[float]]:
    """Losses by contender, all contenders of a seed one after the other; progress goes to stderr."""
    from apt_jax.trainops.distributed.host import enable_compilation_cache

    enable_compilation_cache()
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(seeds):
        for name in contenders:
            started = time.perf_counter()
            losses[name].append(train(name, seed))
            print(
                f"seed {seed} {name}: {losses[name][-1]:.5f} ({time.perf_counter() - started:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return losses


def train(name: str, data: Path, seed: int, steps: int, beta2: float) -> float:
    """Evaluation loss after a run with this optimizer, in nats per token."""
    changes = {
        "training.adam_beta2": beta2,
        "training.optimizer": BASE if name == NUDGED else name,
        "training.learning_rate": RATE * (1 + 1e-3 * (name == NUDGED)),
    }
    return train_with(changes, data, seed, steps)


def train_with(changes: Mapping[str, Any], data: Path, seed: int, steps: int) -> float:
    """Evaluation loss after a run of the public trainer with `SETTINGS` and these changes, in nats per token."""
    from apt_jax import Trainer
    from apt_jax.core.config import default_config, validate

    config = default_config()
    own = {
        "data.path": (str(data),),
        "data.seed": seed,
        "training.seed": seed,
        "training.max_steps": steps,
        "training.warmup_steps": steps // 10,
    }
    with config.unlocked():
        config.update_from_flattened_dict({**SETTINGS, **own, **changes})
    with tempfile.TemporaryDirectory() as workdir:
        trainer = Trainer.from_config(validate(config, source="benchmark"), workdir=workdir)
        return trainer.train()["final"]["eval_loss"]


def table(losses: Mapping[str, list[float]], contender: str) -> list[str]:
    """Losses and gaps to the first contender in Markdown."""
    base = next(iter(losses))
    lines = [
        f"| {contender} | loss by seed | mean gap | standard error | from | to |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, values in losses.items():
        row = f"| {name} | {', '.join(f'{value:.4f}' for value in values)} "
        gaps = [value / its - 1 for value, its in zip(values, losses[base], strict=True)]
        if name != base:
            error = statistics.stdev(gaps) / math.sqrt(len(gaps))
            row += f"| {statistics.mean(gaps):+.3%} | {error:.3%} | {min(gaps):+.3%} | {max(gaps):+.3%} |"
        else:
            row += "| | | | |"
        lines.append(row)
    return lines


def memory_table() -> list[str]:
    """Bytes of one device of compiled steps in Markdown."""
    from benchmarks.estimator import compile_case
    from benchmarks.estimator_cases import VALIDATION_MODELS, Case

    lines = ["| configuration | optimizer | arguments | temporaries | total |", "|---|---|--:|--:|--:|"]
    for size, devices, strategy in (("1B", 1, "ddp"), ("7B", 64, "fsdp")):
        model = {**VALIDATION_MODELS[size], "remat_policy": "full"}
        for optimizer in (BASE, "adamw8bit"):
            training = {"batch_size": devices, "mixed_precision": "bf16", "optimizer": optimizer}
            found = compile_case(Case(size, "optimizer", devices, model, training, {"strategy": strategy}))
            mib = [found[name] / 2**20 for name in ("arguments", "temporaries")]
            figures = " | ".join(f"{value:,.1f}" for value in (*mib, sum(mib)))
            lines.append(f"| {size}, {devices} × {strategy}, batch {devices} | {optimizer} | {figures} |")
    return lines


if __name__ == "__main__":
    main()
