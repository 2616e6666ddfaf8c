"""The run header: what will happen, on what, decided by whom."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import jax

from apt_jax.core.config import Config
from apt_jax.trainops.distributed.memory_kinds import HOST
from apt_jax.trainops.distributed.pipeline.cost import Costs, bubble
from apt_jax.trainops.distributed.pipeline.table import make_table
from apt_jax.trainops.engine.context import RunContext
from apt_jax.trainops.engine.program import Program
from apt_jax.trainops.engine.setup import Setup
from apt_jax.trainops.monitoring import RunHeader, batch_arithmetic
from apt_jax.trainops.monitoring.env import versions

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins
    from apt_jax.trainops.data.bundle import DataBundle


def describe_run(config: Config, setup: Setup, data: DataBundle, plugins: Plugins, run: RunContext) -> RunHeader:
    """Collects the facts shown before the first step."""
    training, model, mesh = config.training, config.model, setup.program.mesh
    shards = setup.program.strategy.rules.ways("batch")
    device = mesh.devices.flat[0]
    kernel, reason = setup.kernel
    if mesh.shape["context"] > 1 and (method := training.distributed.context_method) != "ulysses":
        kernel, reason = method, "the sequence is cut over devices"
    return RunHeader(
        name=config.profile.name,
        devices=f"{mesh.size} of {jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)",
        mesh=dict(mesh.shape),
        strategy=_strategy(config, setup.program) if mesh.size > 1 else "",
        versions=versions(("jax", "flax", "optax")),
        plugins=tuple(f"{p['name']} {p['version']}" for p in run.plugins),
        parameters=run.num_params,
        architecture=(
            f"{model.architecture}: {model.num_layers} layers, width {model.hidden_size}, "
            f"{model.num_attention_heads} heads, vocabulary {run.vocab_size:,}"
        ),
        kernels={
            "attention": f"{kernel} ({reason})",
            **({"matmuls": "; ".join(setup.matmuls)} if setup.matmuls else {}),
            **({"residuals": "; ".join(setup.residuals)} if setup.residuals else {}),
        },
        memory=_memory(setup.program),
        batch=batch_arithmetic(
            training.batch_size, training.gradient_accumulation_steps, shards, data.train.row_length
        ),
        data={"": data.stats.summary()},
        precision=f"compute {setup.dtype.name}, parameters float32, loss float32",
        workdir=str(run.workdir or "none: nothing is written"),
        resume=(
            f"continues at step {run.start_step} of {training.max_steps}"
            if run.start_step
            else f"new run of {training.max_steps} steps"
        ),
        determinism=f"bitwise on {device.device_kind}, jaxlib {metadata.version('jaxlib')}, this mesh",
    )


def _memory(program: Program) -> str:
    """What of the state lies in host memory; empty where nothing does."""
    kinds = program.memory_kinds
    groups = {"weights": kinds.params, "optimizer state": kinds.opt_state}
    there = [name for name, tree in groups.items() if HOST in jax.tree.leaves(tree)]
    return f"{' and '.join(there)} of the layers in host memory, taken to the device layer by layer" if there else ""


def _strategy(config: Config, program: Program) -> str:
    """What the strategy came to, beyond the sizes of the mesh."""
    layout, chosen, mesh = program.layout, config.training.distributed, program.mesh.shape
    parts = [layout.strategy if chosen.strategy != "auto" else f"auto: {layout.strategy}"]
    if layout.zero_stage < 3 and mesh["fsdp"] > 1:
        parts.append(f"parameters whole, {'optimizer state' if layout.zero_stage == 1 else 'gradients'} cut over fsdp")
    if layout.sequence_parallel:
        parts.append("norms and residuals cut along the sequence over tensor")
    if mesh["context"] > 1:
        parts.append(f"attention by {chosen.context_method}")
    if mesh["pipe"] > 1:
        microbatches = config.training.gradient_accumulation_steps
        table = make_table(chosen.pipeline_schedule, mesh["pipe"], microbatches, chosen.pipeline_chunks)
        chunks = f" of {chosen.pipeline_chunks} chunks" if chosen.pipeline_chunks > 1 else ""
        parts.append(
            f"{chosen.pipeline_schedule} pipeline, {mesh['pipe']} stages{chunks}, {microbatches} microbatches, "
            f"bubble {float(bubble(table, Costs(), alike=not program.strategy.stages_diverge)):.0%}"
        )
    return "; ".join(parts)
