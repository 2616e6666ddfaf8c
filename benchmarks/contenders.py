"""The contenders of `train_cpu`: each prepares a training step in its own process and runs it on demand.

A contender is started as `python -m benchmarks.contenders <kind> <json settings>`. It prints one JSON
line when it is ready, and one for every number of steps it reads from standard input.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """What is trained: sizes, and settings both sides understand.

    Attributes:
      precision: "fp32", or "bf16": fp32 parameters and optimizer, bf16 matmuls (in torch: autocast).
      weights: Hugging Face folder with the initial weights; our side can make it from `seed`.
      scan: our side: one compiled layer body for all layers (`model.scan_layers`), else one per layer, which
        is quicker on a CPU and takes longer to compile.
    """

    precision: str
    weights: str
    threads: int
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 8
    intermediate_size: int = 1024
    vocab_size: int = 8192
    length: int = 256
    batch_size: int = 16
    learning_rate: float = 3e-4
    seed: int = 0
    batches: int = 4
    scan: bool = False


def batch_tokens(task: Task) -> Any:
    """int32 [batches, B, T + 1]; the same on both sides."""
    import numpy as np

    shape = (task.batches, task.batch_size, task.length + 1)
    return np.random.default_rng(task.seed).integers(0, task.vocab_size, shape, dtype=np.int32)


def our_config(task: Task) -> Any:
    """The platform's configuration for `task`."""
    from apt_jax.core.config import default_config, validate

    config = default_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "model.architecture": "llama",
                "model.hidden_size": task.hidden_size,
                "model.num_layers": task.num_layers,
                "model.num_attention_heads": task.num_heads,
                "model.intermediate_size": task.intermediate_size,
                "model.vocab_size": task.vocab_size,
                "model.max_position_embeddings": task.length,
                "model.tie_word_embeddings": False,
                "model.scan_layers": task.scan,
                "training.batch_size": task.batch_size,
                "training.mixed_precision": task.precision,
                "training.learning_rate": task.learning_rate,
                "training.lr_schedule": "constant",
                "training.warmup_steps": 0,
                "training.weight_decay": 0.0,
                "training.gradient_clipping": None,
                "training.seed": task.seed,
            }
        )
    return validate(config, source="benchmark")


def apt_jax(task: Task) -> Callable[[], float]:
    """Our compiled step, as `apt_jax.main` builds it."""
    from apt_jax.trainops.distributed.host import prepare_host

    prepare_host()
    import numpy as np

    from apt_jax.core.registry import load_plugins
    from apt_jax.trainops.engine.setup import build_setup

    setup = build_setup(our_config(task), load_plugins(), task.vocab_size)
    program = setup.program
    state = program.init_state(setup.init_params())
    rows = (task.batch_size, task.length)
    constants = {
        "segment_ids": np.ones(rows, np.int32),
        "positions": np.tile(np.arange(task.length, dtype=np.int32), (task.batch_size, 1)),
        "loss_mask": np.ones(rows, np.float32),
    }
    tokens, done = batch_tokens(task), 0

    def step() -> float:
        nonlocal state, done
        rows = tokens[done % task.batches]
        done += 1
        batch = program.put_batch({"tokens": rows[:, :-1], "targets": rows[:, 1:], **constants})
        state, metrics = program.train_step(state, batch)
        return float(metrics["loss"])

    return step


def transformers(task: Task) -> Callable[[], float]:
    """transformers' LlamaForCausalLM with SDPA attention in eager torch, and torch's AdamW as it comes."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(task.threads)
    model = LlamaForCausalLM.from_pretrained(task.weights, attn_implementation="sdpa", dtype=torch.float32)
    model.train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate, weight_decay=0.0)
    tokens, done = torch.from_numpy(batch_tokens(task)).long(), 0

    def step() -> float:
        nonlocal done
        rows = tokens[done % task.batches]
        done += 1
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bf16"):
            logits = model(input_ids=rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def write_weights(task: Task) -> None:
    """Writes our initial weights to `task.weights`."""
    import jax.numpy as jnp

    from apt_jax.core.registry import load_plugins
    from apt_jax.model.build import build_model
    from apt_jax.model.hf import save_pretrained

    model: Any = build_model(our_config(task), task.vocab_size, load_plugins(), dtype=jnp.float32)
    save_pretrained(model, task.weights)


def whole_run(task: Task, steps: int = 40) -> dict[str, float]:
    """A run of the public trainer with data, metrics and work directory: Python's share, and traces."""
    from dataclasses import replace

    from apt_jax.trainops.distributed.host import prepare_host

    prepare_host()
    import numpy as np

    from apt_jax.trainops.engine import Trainer

    words = np.random.default_rng(task.seed).integers(0, 500, (4096, 64))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    config = our_config(task)
    config = replace(
        config,
        training=replace(config.training, max_steps=steps, eval_interval=0, sample_tokens=0),
        data=replace(config.data, tokenizer="bpe"),
        monitoring=replace(config.monitoring, console="off"),
    )
    with tempfile.TemporaryDirectory() as workdir:
        report = Trainer(None, texts, config=config, workdir=workdir).train()
    timing = report["timing"]
    return {
        "steps": steps,
        "traces": report["traces"],
        "host_seconds": timing["host_seconds"],
        "step_seconds": timing["step_seconds"],
    }


def peak_memory() -> float:
    """Highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, this leaves out what the process was before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(step: Callable[[], float]) -> None:
    """Warms up, then runs as many steps as each line of standard input says."""
    losses = [step() for _ in range(3)]  # compilation, and the allocators' first rounds
    print(json.dumps({"losses": losses}), flush=True)
    for line in sys.stdin:
        before, began = time.process_time(), time.perf_counter()
        losses = [step() for _ in range(int(line))]
        answer = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - before,
            "loss": losses[-1],
            "peak_memory": peak_memory(),
        }
        print(json.dumps(answer), flush=True)


def command(kind: str, task: Task) -> list[str]:
    """The command line that starts a contender."""
    return [sys.executable, "-m", "benchmarks.contenders", kind, json.dumps(asdict(task))]


def main(kind: str, settings: str) -> None:
    task = Task(**json.loads(settings))
    if kind == "weights":
        write_weights(task)
    elif kind == "run":
        print(json.dumps(whole_run(task)))
    else:
        serve({"apt_jax": apt_jax, "transformers": transformers}[kind](task))


if __name__ == "__main__":
    main(*sys.argv[1:])
