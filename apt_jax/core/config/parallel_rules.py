"""Relations between the parallel sizes and what they divide."""

from __future__ import annotations

import math
from collections.abc import Iterator

from apt_jax.core.config.problem import Problem
from apt_jax.core.config.schema import Config
from apt_jax.core.errors import unknown_name

STRATEGIES = (
    "auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "tensor", "sequence", "pipeline", "expert", "context",
    "hybrid",
)  # fmt: skip
_WHERE = "training.distributed"
_AXES = ("data", "fsdp", "tensor", "pipeline", "expert", "context")


def parallel(config: Config) -> Iterator[Problem]:
    """Whatever is wrong with `training.distributed`, as far as the config alone can tell."""
    layout = config.training.distributed
    if layout.strategy not in STRATEGIES:
        yield Problem(f"{_WHERE}.strategy", unknown_name("strategy", layout.strategy, STRATEGIES))
    yield from _devices(config)
    yield from _rows(config)
    yield from _model(config)
    yield from _pipeline(config)
    yield from _sequence(config)


def _devices(config: Config) -> Iterator[Problem]:
    layout = config.training.distributed
    if layout.world_size is None:
        return
    sizes = {name: getattr(layout, f"{name}_parallel") for name in _AXES}
    product = math.prod(size or 1 for size in sizes.values())
    # An axis without a size, or one that the strategy is named after, takes the devices that are left.
    named = {"sequence": "tensor"}.get(layout.strategy, layout.strategy)
    open_axis = sizes["data"] is None or sizes["fsdp"] is None or sizes.get(named) == 1
    if layout.world_size % product if open_axis else layout.world_size != product:
        given = " x ".join(f"{name} {size}" for name, size in sizes.items() if size not in (None, 1))
        yield Problem(
            f"{_WHERE}.world_size",
            f"{layout.world_size} must be {'a multiple of' if open_axis else 'equal to'} the product of the "
            f"parallel sizes, {product} ({given or 'all 1'})",
        )


def _rows(config: Config) -> Iterator[Problem]:
    training, layout = config.training, config.training.distributed
    rows = (layout.data_parallel or 1) * (layout.fsdp_parallel or 1) * layout.expert_parallel
    microbatch = training.batch_size // training.gradient_accumulation_steps
    if microbatch % rows:
        yield Problem(
            "training.batch_size",
            f"{training.batch_size} cut in {training.gradient_accumulation_steps} gives {microbatch} "
            f"sequences, which {rows} data-parallel devices cannot share equally; make it a multiple of "
            f"{rows * training.gradient_accumulation_steps}",
        )


def _model(config: Config) -> Iterator[Problem]:
    model, tensor = config.model, config.training.distributed.tensor_parallel
    for key, count in (
        ("num_attention_heads", model.num_attention_heads),
        ("num_key_value_heads", model.num_key_value_heads or model.num_attention_heads),
        ("intermediate_size", model.intermediate_size),
    ):
        if count % tensor:
            yield Problem(f"{_WHERE}.tensor_parallel", f"{tensor} does not divide model.{key}={count}")


def _pipeline(config: Config) -> Iterator[Problem]:
    layout, layers = config.training.distributed, config.model.num_layers
    stages, chunks = layout.pipeline_parallel, layout.pipeline_chunks
    if layers % stages:
        yield Problem(f"{_WHERE}.pipeline_parallel", f"{stages} does not divide model.num_layers={layers}")
    elif layers % (stages * chunks):
        yield Problem(
            f"{_WHERE}.pipeline_chunks",
            f"{chunks} on each of {stages} stages does not divide model.num_layers={layers}",
        )
    if chunks > 1 and layout.pipeline_schedule != "interleaved":
        yield Problem(
            f"{_WHERE}.pipeline_chunks",
            f"{chunks} needs pipeline_schedule=interleaved, not {layout.pipeline_schedule}; or use 1",
        )
    if layout.pipeline_schedule == "interleaved" and chunks == 1:
        yield Problem(f"{_WHERE}.pipeline_chunks", "interleaved needs 2 or more, so that stages interleave")


def _sequence(config: Config) -> Iterator[Problem]:
    layout = config.training.distributed
    length = config.data.sequence_length or config.model.max_position_embeddings
    pieces = layout.context_parallel * (1 if layout.context_method == "ulysses" else 2)
    if layout.context_parallel > 1 and length % pieces:
        yield Problem(
            f"{_WHERE}.context_parallel",
            f"{layout.context_parallel} with context_method={layout.context_method} cuts a row of {length} tokens "
            f"into {pieces} pieces; make data.sequence_length a multiple of that",
        )
    heads = config.model.num_attention_heads // layout.tensor_parallel
    if layout.context_method == "ulysses" and heads % layout.context_parallel:
        yield Problem(
            f"{_WHERE}.context_parallel",
            f"ulysses cannot share {heads} heads (model.num_attention_heads ÷ tensor_parallel) among "
            f"{layout.context_parallel} devices; use a divisor of {heads}, or context_method=ring",
        )
    if layout.context_parallel > 1 and layout.context_method != "ulysses" and config.model.attention_kernel != "auto":
        yield Problem(
            "model.attention_kernel",
            f"'{config.model.attention_kernel}' cannot be used with context_method={layout.context_method}, which "
            "brings its own; use auto, or context_method=ulysses",
        )
    if layout.sequence_parallel or layout.strategy == "sequence":
        cut = layout.context_parallel * layout.tensor_parallel
        if length % cut:
            yield Problem(
                f"{_WHERE}.sequence_parallel", f"{cut} devices cannot share a row of {length} tokens equally"
            )
