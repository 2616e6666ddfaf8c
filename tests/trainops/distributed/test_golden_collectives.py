"""What one compiled train step sends between devices is what theory says, for every strategy.

Theory is written as functions of the sizes below. Bytes are a device's payload as `Collective.bytes` defines it,
and must agree within 5 %; executions exactly. XLA:CPU writes a reduce-scatter as an all-reduce and a slice, with
the same payload; `test_h100.py` asks for the true one.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from apt_jax.core.layout import MESH_AXES, resolve_layout
from apt_jax.trainops.distributed.collectives import Collective, summarize
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.pipeline.table import make_table
from tests.trainops.distributed.golden_steps import (
    FINAL_NORM,
    FLOAT,
    HEAD,
    INT,
    LOSS_FLOATS,
    MATRICES,
    MICROBATCH,
    MICROBATCHES,
    NORMS,
    PARAMETERS,
    PROJECTIONS,
    ROWS,
    SCALARS,
    SUMS,
    TABLE,
    D,
    F,
    H,
    K,
    L,
    N,
    Step,
    T,
    V,
    _sgd,
    assert_theory,
    compile_step,
    native_stderr,
    step_of,
    stream,
    without_cache,
)
from tests.trainops.distributed.origins import Origins
from tests.trainops.distributed.test_parity import LAYOUTS


def test_the_model_has_the_sizes_of_the_theory():
    assert step_of("ddp").num_params * FLOAT == PARAMETERS
    assert D == N * H


# --- strategies -------------------------------------------------------------------------------------------------


def test_ddp_sums_gradients_over_data_once_and_nothing_else():
    found = summarize(step_of("ddp").collectives)
    assert set(found) == {("all-reduce", ("data",))}
    assert found["all-reduce", ("data",)].bytes == PARAMETERS + SUMS  # 24 bytes are no gradient


def test_ddp_sums_gradients_once_for_all_microbatches():
    step = compile_step(LAYOUTS["ddp"], microbatches=4, make_optimizer=_sgd)
    assert step.reduced_over("data") == pytest.approx(PARAMETERS, abs=SCALARS)


# Rows of matrices whose columns are cut: `global_norm` adds up each row before it adds the rows (see there), so
# that a cut row needs a sum over devices. It is done twice, for the clip and for the metric.
CUT_ROWS_FSDP = 2 * (V + L * (N * H + F)) * FLOAT  # of the table, o and down
TOKENS = ROWS * T * INT  # everyone looks up everyone's tokens in its columns of the table


def gathers_of_fsdp() -> tuple[int, int]:
    """Layers for the forward and again for the backward pass, the head once, tokens for the embedding."""
    return 2 * L * PROJECTIONS + 2, 2 * L * MATRICES + HEAD + TOKENS


@pytest.mark.parametrize("remat", ["none", "full"])
def test_fsdp_gathers_layers_twice_and_reduces_gradients_once(remat: str):
    step = step_of("fsdp", remat)
    local = stream(ROWS // 8)
    assert step.total("all-gather", "fsdp") == gathers_of_fsdp()
    assert step.total("all-to-all", "fsdp") == (2, 2 * local)  # looked up columns, and their gradients back
    gradients = PARAMETERS - TABLE  # those of the table's columns came with the all-to-all
    assert_theory(
        step,
        {
            ("all-gather", ("fsdp",)): gathers_of_fsdp()[1],
            ("all-reduce", ("fsdp",)): gradients,
            ("all-to-all", ("fsdp",)): 2 * local,
        },
    )
    assert step.total("all-reduce", "fsdp")[1] - gradients <= CUT_ROWS_FSDP + SCALARS


def test_zero3_is_fsdp():
    fsdp, zero3 = (resolve_layout(LAYOUTS[name], 8, 0) for name in ("fsdp", "zero3"))
    assert replace(zero3, strategy="fsdp") == fsdp


CUT = PARAMETERS - L * NORMS - FINAL_NORM  # norms are whole everywhere


def test_zero1_gathers_updated_parameters_once_and_reduces_gradients_once():
    step = step_of("zero1")
    # The embedding looks tokens up by columns, as with fsdp, and its gradient comes out cut: made whole by a gather.
    assert step.total("all-gather", "fsdp")[1] == CUT + TABLE + TOKENS
    assert step.total("all-reduce", "fsdp")[1] == PARAMETERS - TABLE + SUMS
    assert step.total("all-to-all", "fsdp") == (2, 2 * stream(ROWS // 8))


def test_zero2_gathers_updated_parameters_once_and_reduces_gradients_once():
    step = step_of("zero2")
    assert step.total("all-gather", "fsdp")[1] == CUT + TOKENS
    assert step.total("all-reduce", "fsdp")[1] == pytest.approx(PARAMETERS - TABLE, rel=0.05)
    assert step.total("all-to-all", "fsdp") == (2, 2 * stream(ROWS // 8))


LOCAL = stream(ROWS // 4)  # with data 4 × tensor 2
CUT_ROWS_TENSOR = 2 * (5 * L * D + D) * FLOAT  # of q, k, v, gate, up and the head


def loss_over_tensor(rows: int) -> int:
    """The gradient of the stream, and the sums of the softmax."""
    return stream(rows) + LOSS_FLOATS * rows * T * FLOAT


def reductions_of_tensor() -> int:
    """o and down forward; backward the inputs of q, k, v and of gate, up, which XLA:CPU sends before adding them.

    On an H100 they are added first: 2 forward and 2 backward. The table is cut by rows: a sum makes the stream.
    """
    return L * (2 + 3 + 2) * LOCAL + LOCAL + loss_over_tensor(ROWS // 4)  # the embedding has none backward


def gradients_of_tensor() -> int:
    """Of this device's half of the matrices."""
    return (L * MATRICES + TABLE + HEAD) // 2 + L * NORMS + FINAL_NORM


def executions_in_layers(step: Step, kind: str, axis: str) -> int:
    return sum(one.count for one in step.collectives if (one.kind, one.axes, one.count) == (kind, (axis,), L))


def test_tensor_sums_the_stream_twice_forward_and_twice_backward():
    step = step_of("tensor")
    assert step.total("all-reduce", "tensor")[1] - reductions_of_tensor() <= CUT_ROWS_TENSOR + SCALARS
    assert executions_in_layers(step, "all-reduce", "tensor") == 4 * L
    assert_theory(
        step,
        {
            ("all-reduce", ("tensor",)): reductions_of_tensor() + CUT_ROWS_TENSOR,
            ("all-reduce", ("data",)): gradients_of_tensor(),
        },
    )


def test_sequence_gathers_and_scatters_instead():
    step = step_of("sequence")
    gathers = 4 * L + 2  # two a layer each way; for the loss; the gradient of the stream for the table's rows
    assert step.total("all-gather", "tensor") == (gathers, gathers * LOCAL)
    assert executions_in_layers(step, "all-reduce", "tensor") == 5 * L  # as before, and the gradients of norms
    assert_theory(
        step,
        {
            ("all-gather", ("tensor",)): gathers * LOCAL,
            ("all-reduce", ("tensor",)): reductions_of_tensor() + CUT_ROWS_TENSOR + L * NORMS,
            ("all-reduce", ("data",)): gradients_of_tensor(),
        },
    )


# --- context ----------------------------------------------------------------------------------------------------

SHARDS = 4
ROWS_CONTEXT, PIECE = ROWS // 2, T // SHARDS  # of a device, with data 2 × context 4
KEYS = 2 * ROWS_CONTEXT * PIECE * K * H * FLOAT  # keys and values of a device
TAGS = 2 * ROWS_CONTEXT * PIECE * INT  # their positions and segments


@pytest.mark.parametrize("method", ["ring", "allgather", "ulysses"])
def test_context_sums_all_gradients_over_context_and_data(method: str):
    """In two sums on XLA:CPU, on an H100 in one."""
    step = step_of(f"context {method}")
    assert step.reduced_over("data") == PARAMETERS + SUMS
    # Also the head's, to which every chunk of the loss adds.
    assert step.reduced_over("context") == pytest.approx(PARAMETERS, rel=0.01)


def test_the_ring_passes_keys_on_all_but_once_and_gradients_home():
    step = step_of("context ring")
    permutes = [one for one in step.collectives if one.kind == "collective-permute"]
    forward, backward = SHARDS - 1, 2 * (SHARDS - 1) + 1
    assert sum(one.count for one in permutes if one.bytes == KEYS) == L * (forward + backward)
    # Tags are the same for all layers, which XLA sees in the forward pass.
    assert sum(one.count for one in permutes if one.bytes == TAGS) == (SHARDS - 1) * (1 + L)
    sent = L * (forward + backward) * KEYS + (SHARDS - 1) * (1 + L) * TAGS
    assert step.total("collective-permute", "context")[1] == sent


def test_allgather_gathers_keys_and_scatters_their_gradients():
    step = step_of("context allgather")
    assert step.total("all-gather", "context") == (2 * L + 1, 2 * L * SHARDS * KEYS + SHARDS * TAGS)
    assert step.total("reduce-scatter", "context") == (L, L * SHARDS * KEYS)


def test_ulysses_exchanges_four_times_each_way():
    step = step_of("context ulysses")
    copies = 2  # 2 key/value heads for 4 shards
    there = 2 * stream(ROWS_CONTEXT, PIECE) + copies * KEYS  # queries and output, keys and values
    assert step.total("all-to-all", "context") == (8 * L, 2 * L * there)
    assert step.total("all-gather", "context")[1] == SHARDS * TAGS  # positions and segments of whole rows, once


# --- pipeline ---------------------------------------------------------------------------------------------------

SCHEDULES = {"gpipe": 4, "1f1b": 4, "interleaved": 2, "zero_bubble": 4}  # name: stages


def ticks_of(name: str, stages: int) -> int:
    chunks = LAYOUTS[name].pipeline_chunks
    return make_table(LAYOUTS[name].pipeline_schedule, stages, MICROBATCHES, chunks).ticks


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_pipeline_sends_one_activation_and_one_cotangent_a_tick(name: str):
    stages = SCHEDULES[name]
    step, ticks = step_of(name), ticks_of(name, stages)
    micro = stream(MICROBATCH // (8 // stages))
    permutes = [one for one in step.collectives if one.kind == "collective-permute"]
    assert [(one.axes, one.count, one.bytes, one.conditional) for one in permutes] == [
        (("pipe",), ticks, micro, False)
    ] * 2
    on = {(i, (i + 1) % stages) for i in range(stages)}  # along the ring, on every place of the other axes

    def along(one: Collective) -> set[tuple[int, int]]:
        return {(source // (8 // stages), target // (8 // stages)) for source, target in one.groups}

    assert {frozenset(along(one)) for one in permutes} == {frozenset(on), frozenset((j, i) for i, j in on)}
    # The table and the head are kept cut by stages: made whole once, and so are their gradients summed.
    assert step.total("all-gather", "pipe") == (2, TABLE + HEAD)
    assert step.reduced_over("pipe") == pytest.approx(TABLE + HEAD, rel=0.05)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_pipeline_sums_gradients_over_data_once_and_nothing_else(name: str):
    step = step_of(name)
    stage = L * (MATRICES + NORMS) // SCHEDULES[name] + TABLE + HEAD + FINAL_NORM
    assert step.reduced_over("data") == pytest.approx(stage, rel=0.05)
    assert {one.kind for one in step.collectives if "data" in one.axes} == {"all-reduce"}


# --- every layout -----------------------------------------------------------------------------------------------


def ways(mesh: dict[str, int], *axes: str) -> int:
    return math.prod(mesh[axis] for axis in axes)


def logits_of_all_tokens(step: Step) -> int:
    """Elements of one device's share of [B, T, V]: of a microbatch where there are several."""
    rows = MICROBATCH if step.mesh["pipe"] > 1 else ROWS
    return rows * T * V // ways(step.mesh, "data", "fsdp", "context", "tensor")


def largest_array(text: str) -> int:
    """Elements of the largest array of a program."""
    shapes = set(re.findall(r"\b(?:pred|[a-z]+\d\w*)\[([\d,]+)\]", text))
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_array_holds_the_logits_of_all_tokens(name: str):
    step = step_of(name)
    assert largest_array(step.text) < logits_of_all_tokens(step)


def test_a_loss_at_once_would_be_seen():
    step = compile_step(LAYOUTS["ddp"], loss_chunk=ROWS * T, make_optimizer=_sgd)
    assert largest_array(step.text) >= logits_of_all_tokens(step)


REMATERIALIZED = "Involuntary full rematerialization"


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_involuntary_rematerialization(name: str):
    assert REMATERIALIZED not in step_of(name).printed


def test_an_involuntary_rematerialization_would_be_seen():
    """Rows of a table cut both ways, for tokens cut otherwise: why the embedding is written out."""
    mesh = make_mesh({axis: 2 if axis in ("data", "fsdp", "tensor") else 1 for axis in MESH_AXES})

    def arg(shape: tuple[int, ...], dtype: Any, *spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    rows = NamedSharding(mesh, P(("data", "fsdp")))
    look_up = jax.jit(lambda table, tokens: table[tokens], out_shardings=rows)
    table, tokens = arg((64, 32), jnp.float32, "tensor", "fsdp"), arg((16, 8), jnp.int32, ("data", "fsdp"))
    with without_cache(), native_stderr() as printed:
        look_up.lower(table, tokens).compile()
    assert REMATERIALIZED in printed[0]


# --- branches ---------------------------------------------------------------------------------------------------


PIPED = [name for name, config in LAYOUTS.items() if config.strategy == "pipeline" or config.pipeline_parallel > 1]


@pytest.mark.parametrize("name", PIPED)
def test_no_collective_between_stages_stands_in_a_branch(name: str):
    found = step_of(name).collectives
    assert not [one for one in found if one.conditional and {"pipe", "?"} & {*one.axes}]
    cut_sequence = LAYOUTS[name].context_parallel > 1  # whose keys, or heads, travel inside the layers
    permutes = {one.axes for one in found if one.conditional and one.kind == "collective-permute"}
    assert permutes == ({("context",)} if cut_sequence and LAYOUTS[name].context_method == "ring" else set())


@pytest.mark.parametrize("name", PIPED)
def test_a_branch_with_a_permute_is_chosen_by_the_table_alone(name: str):
    step = step_of(name)
    origins = Origins(step.text)
    choices = [(one, origins.of_choice(where, one)) for where, one in origins.conditionals()]
    assert choices
    for one, found in choices:
        if origins.holds(one, "collective-permute"):
            assert found <= {"constant", "iota"}, (one.name, found)
    # Where the sequence is whole, only the first stage embeds and only the last one computes the loss: the check
    # sees that such a branch is chosen by the place of a device.
    divergent = [one.name for one, found in choices if "partition-id" in found]
    whole = LAYOUTS[name].context_parallel == 1 and not LAYOUTS[name].sequence_parallel
    assert bool(divergent) == whole
