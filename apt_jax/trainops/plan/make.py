"""From a config and a target to a plan."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import jax

from apt_jax.core.config import Config
from apt_jax.trainops.distributed.collectives import Collective, ProgramError, read_collectives
from apt_jax.trainops.plan.compiled import Compiled, compile_step, host_bytes, vocabulary
from apt_jax.trainops.plan.memory import Facts, break_down, pipeline_table, replicated_warnings, sharding_report
from apt_jax.trainops.plan.network import Network, Traffic
from apt_jax.trainops.plan.plan import Flops, Plan
from apt_jax.trainops.plan.roofline import roofline
from apt_jax.trainops.plan.work import compiled_flops, model_flops
from apt_jax.vgpu.scheduler.devices import Target

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


def make_plan(config: Config, plugins: Plugins, target: Target) -> Plan:
    """Compiles the real train step for the target and reads what it needs.

    Raises:
      AptError: as `compile_step`.
    """
    return read_plan(compile_step(config, plugins, target))


def read_plan(done: Compiled) -> Plan:
    """The plan of a compiled step."""
    start = time.perf_counter()
    config, program, target = done.config, done.setup.program, done.target
    mesh, device = dict(program.mesh.shape), target.device
    network = Network(program.mesh, device.links)
    warnings = list(done.warnings)
    traffic = _traffic(done, network, warnings)
    flops = _flops(done)
    report = sharding_report(done)
    warnings += replicated_warnings(report, device.memory_bytes)
    parts = break_down(done)
    bounds = roofline(
        device,
        dtype=short_dtype(done.setup.dtype.name),
        flops=flops.device,
        model_flops=flops.model / program.mesh.size,
        traffic_bytes=memory_traffic(done, parts["saved_activations"].bytes if "saved_activations" in parts else 0),
        collectives=traffic,
        bubble=_bubble(done),
        host_bytes=host_traffic(done),
    )
    if done.allocated.host and device.host_bandwidth is None:
        warnings.append(f"{device.label}: the speed to its host's memory is not known, and its time is missing")
    levels = {axis: level for axis in mesh if (level := network.axis_level(axis)) is not None}
    fastest = device.links[0].name
    if mesh["tensor"] > 1 and levels["tensor"] != fastest:
        warnings.append(f"tensor parallelism crosses {levels['tensor']}: use a tensor_parallel that {fastest} joins")
    return Plan(
        profile=config.profile.name,
        target=str(target),
        label=device.label,
        wiring=target.wiring,
        devices=program.mesh.size,
        num_params=program.num_params,
        vocab_size=done.vocab_size,
        vocab_from=vocabulary(config)[1],
        length=done.length,
        batch_size=config.training.batch_size,
        accumulation=config.training.gradient_accumulation_steps,
        optimizer=config.training.optimizer,
        remat=config.model.remat_policy,
        precision=short_dtype(done.setup.dtype.name),
        kernel=done.kernel,
        matmuls=done.setup.matmuls,
        residuals=done.setup.residuals,
        strategy=program.layout.strategy,
        zero_stage=program.layout.zero_stage if mesh["fsdp"] > 1 else 0,
        mesh=mesh,
        levels=levels,
        capacity=device.memory_bytes,
        nominal=device.nominal_bytes,
        allocated=done.allocated,
        parts=parts,
        flops=flops,
        traffic=tuple(traffic),
        bounds=bounds,
        warnings=tuple(warnings),
        seconds={
            "lower": done.lower_seconds,
            "compile": done.compile_seconds,
            "read": time.perf_counter() - start,
        },
        schedule=config.training.distributed.pipeline_schedule if mesh["pipe"] > 1 else "",
        chunks=config.training.distributed.pipeline_chunks if mesh["pipe"] > 1 else 1,
        alike=not program.strategy.stages_diverge,
    )


def _traffic(done: Compiled, network: Network, warnings: list[str]) -> list[Traffic]:
    """Collectives by kind and axes; a program that cannot be read has a warning instead."""
    if done.setup.program.mesh.size == 1:
        return []
    if done.target.slices > 1:
        warnings.append(
            "collectives across slices are not counted, nor is the data-centre network's time: a TPU's program hands "
            "them to the host"
        )
    try:
        collectives = read_collectives(done.text, done.setup.program.mesh.shape, unknown_trips=1)
    except ProgramError as error:
        warnings.append(f"collectives were not read, the network's time is missing: {error}")
        return []
    return network.traffic(_as_often_as_run(one, done) for one in collectives if one.axes)


def _as_often_as_run(one: Collective, done: Compiled) -> Collective:
    """In a pipeline's loop a branch is not taken at every tick, but once for each microbatch and group of layers."""
    table = pipeline_table(done)
    if table is None or not one.conditional:
        return one
    return replace(one, count=max(1, one.count * table.microbatches * table.chunks // table.ticks))


def _flops(done: Compiled) -> Flops:
    config, program = done.config, done.setup.program
    tokens = config.training.batch_size * done.length
    needed = model_flops(config.model, program.num_params, tokens, done.length, done.vocab_size)
    table = pipeline_table(done)
    if table is None:
        counted = compiled_flops(done.text)
    else:
        # Where stages take branches of their own, embedding and loss are the only ones within another, and belong to
        # one group of layers each; zero_bubble has weight gradients in two slots of a tick.
        alone = program.strategy.stages_diverge
        counted = compiled_flops(
            done.text,
            table.ticks,
            table.microbatches * table.chunks,
            nested=1 / table.chunks if alone else 1.0,
            same_once=table.schedule == "zero_bubble",
        )
    if counted is None:
        return Flops(needed, needed / program.mesh.size, False)
    return Flops(needed, counted, True)


def _bubble(done: Compiled) -> float:
    from apt_jax.trainops.distributed.pipeline.cost import Costs, bubble

    table = pipeline_table(done)
    alike = not done.setup.program.strategy.stages_diverge
    return 0.0 if table is None else float(bubble(table, Costs(), alike=alike))


def memory_traffic(done: Compiled, saved: int) -> float:
    """Bytes that one device must move to and from its memory in a step, at least.

    The state is read and written once; a device's weights are read for the forward and twice for the backward pass
    of every microbatch, in compute precision; saved activations are written and read once per microbatch.
    """
    program, training = done.setup.program, done.config.training
    mesh, item = program.mesh.shape, done.setup.dtype.itemsize
    weights = program.num_params * item / (mesh["tensor"] * mesh["pipe"] * mesh["expert"])
    each = saved if mesh["pipe"] == 1 else saved / max(1, max(Facts.of(done).stacks))
    micros = training.gradient_accumulation_steps
    state = done.allocated.arguments + done.allocated.outputs
    return state + micros * (3 * weights + 2 * each)


def host_traffic(done: Compiled) -> int:
    """Bytes that one device takes from its host's memory in a step, or puts there, whichever is more.

    Of what lies there, parameters are read by the forward pass, the backward pass and the update, and written by the
    last; gradients are written and read, twice where their norm must be known before the update; optimizer slots are
    read and written; and inputs of layers as well.
    """
    program, training = done.setup.program, done.config.training
    state, kinds = program.abstract_state(), program.memory_kinds
    weights = host_bytes(state.params, jax.tree.leaves(kinds.params))
    slots = host_bytes(state.opt_state, jax.tree.leaves(kinds.opt_state))
    micros, clips = training.gradient_accumulation_steps, training.gradient_clipping is not None
    inputs = 0
    if done.config.model.remat_policy == "offload":
        tokens = Facts.of(done).tokens * micros
        inputs = tokens * done.config.model.hidden_size * done.setup.dtype.itemsize * done.config.model.num_layers
    sums = micros if micros > 1 else 0  # gradients added up: two read and one written
    read = weights * (2 * micros + 1 + 2 * sums + 1 + clips) + slots + inputs
    written = weights * (micros + sums + 1) + slots + inputs
    return max(read, written)


def short_dtype(dtype: str) -> str:
    """`bf16` of `bfloat16`."""
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)
