"""Training a model whose weights and optimizer state exceed the memory limit of its process by 6.8 times.

    python -m benchmarks.tiers [--limit-mib 768] [--layers 93] [--width 640] [--steps 3] [--compress 0]

Two processes train the same decoder blocks with AdamW from the same weights on the same batch. One streams layers,
moments and layer inputs from a folder through a stack that holds two layers; the kernel refuses it more private memory
than the limit (RLIMIT_DATA), and its peak resident memory, code and libraries included, is read from /proc. The other
is one compiled step over the stacked layers, with no limit. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.train_cpu import hardware

MIB = 2**20
VOCABULARY, HEADS, LEARNING_RATE = 256, 10, 1e-4
# Freed arrays go back to the system at once: glibc would keep them, and pile up pieces of other sizes.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True)
class Task:
    """What both sides train: `layers` decoder blocks of `width`, between a frozen embedding and a frozen head."""

    layers: int
    width: int
    steps: int
    rows: int = 2
    length: int = 64
    compress: int = 1

    @property
    def layer_bytes(self) -> int:
        """Weights and both moments of one layer, float32."""
        return 3 * 4 * (12 * self.width**2 + 2 * self.width)

    @property
    def state_bytes(self) -> int:
        """Of all layers."""
        return self.layers * self.layer_bytes


def layer_weights(task: Task, index: int) -> dict[str, Any]:
    """Initial weights of one layer; the same on both sides."""
    import numpy as np

    rng, d = np.random.default_rng([7, index]), task.width
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    weights = {
        name: rng.standard_normal(shape, np.float32) * np.float32(0.5 * (shape[0] * task.layers) ** -0.5)
        for name, shape in shapes.items()
    }
    return {**weights, "norm1": np.ones(d, np.float32), "norm2": np.ones(d, np.float32)}


def parts(task: Task) -> tuple[Any, Any, Any, Any]:
    """(apply_layer, loss_head, x_BTD, targets_BT)."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    rng, heads = np.random.default_rng(11), HEADS
    embedding_VD, head_VD = rng.standard_normal((2, VOCABULARY, task.width), np.float32)
    tokens = rng.integers(0, VOCABULARY, (task.rows, task.length + 1))

    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def apply_layer(p, x_BTD):
        b, t, d = x_BTD.shape
        q, k, v = jnp.split((norm(x_BTD, p["norm1"]) @ p["qkv"]).reshape(b, t, 3 * heads, d // heads), 3, axis=2)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(b, t, d)
        x_BTD = x_BTD + mixed @ p["out"]
        return x_BTD + jax.nn.gelu(norm(x_BTD, p["norm2"]) @ p["up"]) @ p["down"]

    def loss_head(x_BTD, targets_BT):
        logits_BTV = norm(x_BTD, task.width**-0.5) @ head_VD.T
        return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT).mean()

    return apply_layer, loss_head, jnp.asarray(embedding_VD[tokens[:, :-1]]), jnp.asarray(tokens[:, 1:])


def streamed(task: Task, folder: str) -> Iterator[dict[str, Any]]:
    """One dict a step."""
    import optax

    from apt_jax.vgpu.memory.tiers import (
        LayerStreamer,
        create_vgpu_stack,
        init_optimizer,
        layer_programs,
        stream_layers,
        train_streamed,
    )

    apply_layer, loss_head, x, targets = parts(task)
    held = 2 * (task.layer_bytes + x.nbytes) + 4096  # the counts of Adam
    levels = [
        {"tier": "device", "capacity_mb": held / MIB},
        {"tier": "disk", "capacity_mb": 2 * task.state_bytes / MIB, "path": folder, "compress": bool(task.compress)},
    ]
    with create_vgpu_stack(levels) as stack:
        programs = layer_programs(apply_layer, loss_head, optax.adamw(LEARNING_RATE))
        keys = stream_layers((layer_weights(task, i) for i in range(task.layers)), stack)
        init_optimizer(programs, keys, stack)
        for _ in range(task.steps):
            stack.reset_statistics()
            started = time.perf_counter()
            loss, _ = train_streamed(programs, x, targets, LayerStreamer(stack, keys))
            figures, seconds = stack.statistics(), time.perf_counter() - started
            disk = figures.levels[-1]
            yield {
                "loss": float(loss),
                "seconds": seconds,
                "stall_fraction": figures.stall_fraction,
                "l0_peak": figures.levels[0].peak,
                "disk_in": disk.bytes_in,
                "disk_out": disk.bytes_out,
                "disk_in_speed": disk.bandwidth_in,
                "disk_out_speed": disk.bandwidth_out,
                "on_disk": sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()),
            }
        stack.print_stats()


def in_memory(task: Task) -> Iterator[dict[str, Any]]:
    """One dict a step."""
    import jax
    import numpy as np
    import optax

    apply_layer, loss_head, x, targets = parts(task)
    optimizer = optax.adamw(LEARNING_RATE)

    def loss_of(params):
        body = jax.checkpoint(lambda x, layer: (apply_layer(layer, x), None))
        return loss_head(jax.lax.scan(body, x, params)[0], targets)

    def step(params, state):
        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    program = jax.jit(step, donate_argnums=(0, 1))
    each = [layer_weights(task, i) for i in range(task.layers)]
    params = {name: jax.device_put(np.stack([layer[name] for layer in each])) for name in each[0]}
    del each
    state = optimizer.init(params)
    for _ in range(task.steps):
        started = time.perf_counter()
        params, state, loss = program(params, state)
        yield {"loss": float(loss), "seconds": time.perf_counter() - started}


def memory_of_this_process() -> dict[str, int]:
    """Bytes: peak resident, and private memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return {"peak_resident": int(fields["VmHWM"]) * 1024, "private": int(fields["VmData"]) * 1024}


def contend(side: str, task: Task, folder: str, limit: int) -> None:
    """A process of its own: runs one side and prints one line of JSON."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.block_until_ready(jax.numpy.ones(8) + 1)
    base = memory_of_this_process()["peak_resident"]
    rows = list(streamed(task, folder) if side == "streamed" else in_memory(task))
    print(json.dumps({"rows": rows, "base_resident": base, **memory_of_this_process()}))


def launch(side: str, task: Task, limit: int) -> dict[str, Any]:
    """What a side reports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.tiers", f"--side={side}", f"--folder={folder}"]
        command += [f"--limit-mib={limit // MIB}", *(f"--{name}={value}" for name, value in asdict(task).items())]
        environment = {**os.environ, **(ALLOCATOR if limit else {})}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    lines = done.stdout.splitlines()
    print(*lines[:-1], sep="\n", file=sys.stderr)
    return json.loads(lines[-1])


def report(task: Task, limit: int, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [
        f"{task.layers} blocks of width {task.width}, {task.state_bytes // 12:,} parameters, weights and moments "
        f"{task.state_bytes / MIB:,.0f} MiB = {task.state_bytes / limit:.2f} times the limit of "
        f"{limit / MIB:,.0f} MiB; {task.rows} rows of {task.length} tokens a step",
        "",
        "| step | loss, streamed | loss, in memory | difference | s, streamed | in memory | stalls | read | written |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for index, (a, b) in enumerate(zip(ours["rows"], theirs["rows"], strict=True)):
        lines.append(
            f"| {index + 1} | {a['loss']:.7f} | {b['loss']:.7f} | {abs(a['loss'] - b['loss']):.1e} "
            f"| {a['seconds']:.1f} | {b['seconds']:.1f} | {a['stall_fraction']:.0%} "
            f"| {a['disk_out'] / MIB:,.0f} MiB at {a['disk_out_speed'] / MIB:,.0f} MiB/s "
            f"| {a['disk_in'] / MIB:,.0f} MiB at {a['disk_in_speed'] / MIB:,.0f} MiB/s |"
        )
    last = ours["rows"][-1]
    lines += [
        "",
        "| | streamed | in memory |",
        "|---|--:|--:|",
        f"| limit on private memory | {limit / MIB:,.0f} MiB | none |",
        f"| peak resident memory | {ours['peak_resident'] / MIB:,.0f} MiB | {theirs['peak_resident'] / MIB:,.0f} MiB |",
        f"| of it before training (jax itself) | {ours['base_resident'] / MIB:,.0f} MiB "
        f"| {theirs['base_resident'] / MIB:,.0f} MiB |",
        f"| most in level 0 | {last['l0_peak'] / MIB:,.0f} MiB | |",
        f"| state on disk after the last step | {last['on_disk'] / MIB:,.0f} MiB | |",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit-mib", type=int, default=768, help="private memory of the streaming process")
    parser.add_argument("--layers", type=int, default=93)
    parser.add_argument("--width", type=int, default=640, help=f"a multiple of {HEADS}")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--compress", type=int, choices=(0, 1), default=1, help="LZ4 on disk")
    parser.add_argument("--side", choices=("streamed", "in_memory"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    task = Task(given.layers, given.width, given.steps, given.rows, given.length, given.compress)
    limit = given.limit_mib * MIB
    if given.side:
        contend(given.side, task, given.folder, limit)
        return
    ours, theirs = launch("streamed", task, limit), launch("in_memory", task, 0)
    print(f"`python -m benchmarks.tiers {' '.join(sys.argv[1:])}`".replace(" `", "`"))
    print(f"on {hardware()}; " + ", ".join(f"{name} {version(name)}" for name in ("jax", "optax", "tensorstore")))
    print("", *report(task, limit, ours, theirs), sep="\n")


if __name__ == "__main__":
    main()
