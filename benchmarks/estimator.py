"""The closed-form memory estimate beside the compiler's figure, and beside two public formulas.

    python -m benchmarks.estimator                        the table, from the stored figures: seconds, no jax
    python -m benchmarks.estimator --split=fitting        … of the configurations that constants were fitted on
    python -m benchmarks.estimator --split=tpu            … of TPUs, for which no accuracy is promised
    python -m benchmarks.estimator --compile [--fresh]    compiles what is not stored yet (--fresh: everything)

Compiling needs no GPU but `pip install apt-jax[gpu-compile]`; half a minute a configuration on two cores; the
TPU split needs libtpu, is compiled only when named, and takes a minute or two each. Figures are bytes of one device:
arguments + temporaries + outputs that reuse no argument.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from apt_jax.core.config.schema import Config, DistributedConfig, ModelConfig, TrainingConfig, VgpuConfig
from apt_jax.vgpu.scheduler.estimator import estimate
from apt_jax.vgpu.scheduler.shapes import parameters
from benchmarks.estimator_cases import Case, fitting, tpu, validation

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

FIXTURES = Path(__file__).parent.parent / "tests" / "vgpu" / "scheduler" / "fixtures"
TARGET = Path(__file__).parent.parent / "tests" / "trainops" / "distributed" / "h100.txtpb"
SPLITS = {"fitting": fitting, "validation": validation}
OTHERS = {"tpu": tpu}  # for which no accuracy is promised
# No device to tune on; and the machine code is thrown away, so it need not be good. Neither changes a buffer.
XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
GIB = 2**30


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--split", choices=[*SPLITS, *OTHERS], default=None, help="default: validation; with --compile: both"
    )
    parser.add_argument("--compile", action="store_true", help="compile and store figures")
    parser.add_argument("--fresh", action="store_true", help="with --compile: also those that are stored")
    given = parser.parse_args(argv)
    if given.compile:
        for split in [given.split] if given.split else SPLITS:
            regenerate(split, fresh=given.fresh)
    rows = [compare(record) for record in load(given.split or "validation")]
    print(table(rows))
    print(summary(rows))


def cases(split: str) -> list[Case]:
    """The configurations of a split."""
    return list({**SPLITS, **OTHERS}[split]())


def config_of(record: dict[str, Any]) -> Config:
    """The config of a stored record."""
    layout = DistributedConfig(**record["distributed"])
    return Config(
        model=ModelConfig(**record["model"]),
        training=TrainingConfig(**record["training"], distributed=layout),
        vgpu=VgpuConfig(**record.get("vgpu", {})),
    )


def load(split: str) -> list[dict[str, Any]]:
    """Stored records."""
    return json.loads((FIXTURES / f"{split}.json").read_text())["cases"]


def regenerate(split: str, *, fresh: bool = False) -> None:
    """Compiles the configurations of a split and stores their figures, one after the other."""
    path = FIXTURES / f"{split}.json"
    stored = {} if fresh or not path.exists() else {record["name"]: record for record in load(split)}
    records = []
    for case in cases(split):
        record = stored.get(case.name)
        if record is None or {k: record.get(k, {}) for k in asdict(case)} != asdict(case):
            started = time.perf_counter()
            record = {**asdict(case), "compiled": compile_case(case)}
            print(f"{case.name}: {time.perf_counter() - started:.0f} s", flush=True)
        records.append(record)
        rest = [r for name, r in stored.items() if name not in {x["name"] for x in records}]
        store(path, [*records, *rest])
    store(path, records)


def store(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A line per configuration, so that a change is one line in review."""
    from importlib.metadata import version

    lines = ",\n".join(json.dumps(record) for record in records)
    versions = json.dumps({name: version(name) for name in ("jax", "jaxlib")})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"versions": {versions},\n"cases": [\n{lines}\n]}}\n')


def compile_case(case: Case) -> dict[str, int]:
    """The compiler's figures of the real train step, in bytes of one device."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = XLA_FLAGS
    import jax

    from apt_jax.core.registry import load_plugins
    from apt_jax.trainops.engine.setup import build_setup
    from apt_jax.trainops.plan.compiled import allocated, host_bytes, say_memory_kinds

    config = config_of(asdict(case))
    plugins = load_plugins(enabled=(), disabled=("*",), plugins_dir=None)
    devices = devices_of(case, plugins)
    program = build_setup(config, plugins, config.model.vocab_size or 0, devices=devices).program
    state, batch = program.abstract_state(), program.abstract_batch(config.model.max_position_embeddings)
    lowered, kinds = program.train_step.lower(state, batch), jax.tree.leaves(program.memory_kinds)
    say_memory_kinds(lowered, kinds)
    figures: Any = lowered.compile().memory_analysis()
    found = allocated(figures, host_bytes(state, kinds), "nvidia" if case.target == "h100" else "")
    return {
        "arguments": found.arguments,
        "temporaries": figures.temp_size_in_bytes,
        "outputs": found.outputs,
        "reused": found.aliased,
        "peak": figures.peak_memory_in_bytes,
        **({"host": found.host} if found.host else {}),
    }


def devices_of(case: Case, plugins: Plugins) -> Sequence[Any]:
    """Devices to compile for: of H100s as the stored figures have them, of others as plans do."""
    if case.target != "h100":
        from apt_jax.vgpu.scheduler.devices import parse_target, topology_devices

        return topology_devices(parse_target(f"{case.target}:{case.devices}", plugins))
    from jax.experimental import topologies

    hosts, per_host = max(1, case.devices // 8), min(8, case.devices)
    return topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology=f"1x{hosts}x{per_host}"
    ).devices


def compiled_total(record: dict[str, Any]) -> int:
    """Bytes that the compiled step needs, without its code.

    Of a TPU the smaller of two bounds, as in plans (`trainops.plan.compiled.allocated`).
    """
    figures = record["compiled"]
    total = figures["arguments"] + figures["temporaries"] + figures["outputs"] - figures["reused"]
    return total if record["target"] == "h100" else min(total, figures["peak"])


def compare(record: dict[str, Any]) -> dict[str, Any]:
    """The figures of a configuration: the compiler's, ours, and what public formulas say; bytes of one device."""
    config, compiled, total = config_of(record), record["compiled"], compiled_total(record)
    ours = estimate(config, record["devices"])
    sizes = [tensor.size for tensor in parameters(config.model)]
    layer = sum(t.size for t in parameters(config.model) if t.layered) // config.model.num_layers
    return {
        "name": record["name"],
        "group": record["group"],
        "params": sum(sizes),
        "compiled": total,
        "ours": ours.memory_per_gpu,
        "error": ours.memory_per_gpu / total - 1,
        "arguments": (compiled["arguments"], ours.argument_bytes),
        "accelerate": accelerate(sum(sizes), config.training.mixed_precision),
        "deepspeed": None
        if ours.host_bytes
        else deepspeed(sum(sizes), max(layer, sizes[0]), record["devices"], config.training.distributed),
    }


def accelerate(num_params: int, precision: str) -> int:
    """Bytes that `accelerate estimate-memory` gives for training with Adam; it knows no sharding, no batch.

    `estimate_training_usage` in accelerate/commands/estimate.py: the largest of its phases.
    """
    return num_params * 4 * (4 if precision == "fp32" else 2)


def deepspeed(num_params: int, largest_layer: int, devices: int, layout: DistributedConfig) -> int | None:
    """Bytes per GPU of DeepSpeed's `estimate_zero2/3_model_states_mem_needs`, without offload; no activations.

    Not asked where anything is offloaded.

    zero/stage3.py: 4 B of the largest layer + 18 B / devices; zero/stage_1_and_2.py: 4 B + 16 B / devices. None for
    layouts that it has no formula for.
    """
    cut = (layout.tensor_parallel, layout.pipeline_parallel, layout.context_parallel)
    if max(cut) > 1 or layout.data_parallel not in (None, 1):
        return None
    if layout.strategy in ("fsdp", "zero3"):
        return 4 * largest_layer + 18 * num_params // devices
    if layout.strategy == "zero2" or devices == 1:
        return 4 * num_params + 16 * num_params // devices
    return None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| configuration | compiled GiB | ours GiB | error | accelerate GiB | error | DeepSpeed GiB | error |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        others = []
        for name in ("accelerate", "deepspeed"):
            value = row[name]
            others += ["-", "-"] if value is None else [f"{value / GIB:.2f}", f"{value / row['compiled'] - 1:+.0%}"]
        lines.append(
            f"| {row['name']} | {row['compiled'] / GIB:.2f} | {row['ours'] / GIB:.2f} | {row['error']:+.1%} | "
            + " | ".join(others)
            + " |"
        )
    return "\n".join(lines)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Errors by group, and of all; and whether argument bytes agree."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(abs(row["error"]))
    lines = [f"{name}: {len(e)}, median {median(e):.1%}, largest {max(e):.1%}" for name, e in sorted(groups.items())]
    everything = [error for errors in groups.values() for error in errors]
    exact = sum(given == ours for given, ours in (row["arguments"] for row in rows))
    within = sum(error <= 0.1 for error in everything)
    lines.append(
        f"all: {len(everything)}, median {median(everything):.1%}, largest {max(everything):.1%}, "
        f"within 10 %: {within}; argument bytes exact: {exact}"
    )
    for name in ("accelerate", "deepspeed"):
        errors = [abs(row[name] / row["compiled"] - 1) for row in rows if row[name] is not None]
        if errors:
            lines.append(
                f"{name}: {len(errors)}, median {median(errors):.0%}, within 10 %: {sum(e <= 0.1 for e in errors)}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
