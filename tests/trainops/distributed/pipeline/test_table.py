"""Tables: a toy model run by them gets its gradients, in the memory the theory allows."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apt_jax.core.errors import ConfigError
from apt_jax.trainops.distributed.pipeline.replay import validate
from apt_jax.trainops.distributed.pipeline.table import SCHEDULES, Op, TickTable, make_table

ARRAYS = ("op", "micro", "chunk", "stash", "deferred")


@st.composite
def sizes(draw) -> tuple[str, int, int, int]:
    """Schedule, stages, microbatches, chunks."""
    schedule = draw(st.sampled_from(SCHEDULES))
    chunks = draw(st.integers(2, 3)) if schedule == "interleaved" else 1
    return schedule, draw(st.integers(1, 6)), draw(st.integers(1, 24)), chunks


def run_toy(table: TickTable) -> tuple[list[int], list[int], Counter]:
    """Runs y = w_c * x on all virtual stages as the device program would: buffers, registers, permutes.

    Returns the gradients by virtual stage and by input, and how often each (op, stage, micro, chunk) ran.
    Nothing is checked on the way: a wrong buffer or a late value makes wrong numbers, a missing one None.
    """
    count = table.stages * table.chunks
    weights, inputs, target = toy(table)
    weight_grads, input_grads = [0] * count, [0] * table.microbatches
    stash = [[None] * table.stash_size for _ in range(table.stages)]
    deferred = [[None] * table.deferred_size for _ in range(table.stages)]
    activation, cotangent = [None] * table.stages, [None] * table.stages
    seen: Counter = Counter()
    for t in range(table.ticks):
        forth, back = [None] * table.stages, [None] * table.stages
        for s in range(table.stages):
            for i in range(table.slots):
                op, m, j, at, later = (int(getattr(table, name)[t, s, i]) for name in ARRAYS)
                if op == Op.IDLE:
                    continue
                seen[op, s, m, j] += 1
                c = j * table.stages + s
                if op == Op.FORWARD:
                    x = inputs[m] if c == 0 else activation[s]
                    stash[s][at], forth[s] = x, weights[c] * x
                elif op == Op.WEIGHT_GRAD:
                    x, g = deferred[s][later]
                    weight_grads[c] += g * x
                else:
                    x = stash[s][at]
                    g = weights[c] * x - target if c == count - 1 else cotangent[s]
                    back[s] = g * weights[c]
                    if c == 0:
                        input_grads[m] += back[s]
                    if op == Op.BACKWARD:
                        weight_grads[c] += g * x
                    else:
                        deferred[s][later] = (x, g)
        activation, cotangent = [forth[-1], *forth[:-1]], [*back[1:], back[0]]
    return weight_grads, input_grads, seen


def toy(table: TickTable) -> tuple[list[int], list[int], int]:
    """Weights by virtual stage, inputs by microbatch, and the target of all; whole numbers, sums are exact."""
    return [c + 2 for c in range(table.stages * table.chunks)], [3 * m * m + 5 for m in range(table.microbatches)], 11


def most_held(table: TickTable, stage: int, first: Op, last: tuple[Op, ...]) -> int:
    """The most pieces between their `first` and `last` op, counted op by op."""
    held = most = 0
    for op in table.op[:, stage, :].ravel():
        held += int(op == first)
        most = max(most, held)
        held -= int(op in last)
    return most


@settings(max_examples=120, deadline=None)
@given(sizes())
def test_the_gradients_of_a_toy_model_are_right(given_sizes):
    table = make_table(*given_sizes)
    weight_grads, input_grads, seen = run_toy(table)
    weights, inputs, target = toy(table)
    product = math.prod(weights)
    errors = [product * x - target for x in inputs]
    assert weight_grads == [sum(e * product // w * x for e, x in zip(errors, inputs, strict=True)) for w in weights]
    assert input_grads == [e * product for e in errors]
    kinds = (
        (Op.FORWARD, Op.INPUT_GRAD, Op.WEIGHT_GRAD) if table.schedule == "zero_bubble" else (Op.FORWARD, Op.BACKWARD)
    )
    every = [
        (kind, s, m, j)
        for kind in kinds
        for s in range(table.stages)
        for m in range(table.microbatches)
        for j in range(table.chunks)
    ]
    assert seen == Counter(every)  # each once, and nothing else


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_memory_is_what_the_theory_says(given_sizes):
    schedule, P, M, v = given_sizes
    table = make_table(*given_sizes)
    backwards = (Op.BACKWARD, Op.INPUT_GRAD)
    held = tuple(most_held(table, s, Op.FORWARD, backwards) for s in range(P))
    owed = tuple(most_held(table, s, Op.INPUT_GRAD, (Op.WEIGHT_GRAD,)) for s in range(P))
    assert (table.stash_per_stage, table.deferred_per_stage) == (held, owed)
    assert (table.stash_size, table.deferred_size) == (max(held), max(owed) if schedule == "zero_bubble" else 0)
    bounds = tuple(min(M * v, P * (v - 1) + 2 * (P - 1 - s) + 1) for s in range(P))
    if schedule == "gpipe":
        assert held == (M,) * P
    elif M % P == 0 or v == 1:
        assert held == bounds
    else:  # places left out in the last group
        assert all(a <= b for a, b in zip(held, bounds, strict=True))
    if schedule == "zero_bubble":
        bounds = tuple(min(M, 2 * s + 1) for s in range(P))
        assert all(a <= b for a, b in zip(owed, bounds, strict=True))
        assert owed[-1] == bounds[-1]
        assert owed == bounds or M < 2 * P - 1


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_ticks(given_sizes):
    schedule, P, M, v = given_sizes
    table = make_table(*given_sizes)
    last = (M - 1) // P * P * v + (v - 1) * P + (M - 1) % P  # place of the last forward, with holes
    assert table.ticks == (2 * (M + P - 1) if schedule == "gpipe" else last + P + P * v - 1)
    if schedule in ("1f1b", "zero_bubble"):
        ((tick, slot),) = np.argwhere((table.op[:, -1] > Op.FORWARD) & (table.micro[:, -1] == M - 1))[:1]
        assert (tick, slot) == (M + P - 2, 1)  # the last stage's backward comes in the tick of its forward
        assert table.op[tick, -1, 0] == Op.FORWARD


def test_interleaved_takes_groups_of_microbatches_through_chunk_after_chunk():
    table = make_table("interleaved", 2, 4, 2)
    run = table.op[:, 0, 0] == Op.FORWARD
    order = list(zip(table.micro[run, 0, 0].tolist(), table.chunk[run, 0, 0].tolist(), strict=True))
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1)]


def test_what_a_program_needs_to_know():
    table = make_table("zero_bubble", 3, 6)
    assert table.slot_ops == ((Op.FORWARD, Op.WEIGHT_GRAD), (Op.INPUT_GRAD,), (Op.WEIGHT_GRAD,))
    assert make_table("gpipe", 3, 6).slot_ops == ((Op.FORWARD,), (Op.BACKWARD,))
    assert make_table("interleaved", 3, 6, 2).virtual_stages == 6
    for name in ARRAYS:
        array = getattr(table, name)
        assert array.dtype == np.int32 and array.shape == (table.ticks, 3, 3) and not array.flags.writeable
        assert table.to_json()[name] == array.tolist()
    assert table.to_json()["ops"][Op.INPUT_GRAD] == "INPUT_GRAD"


@settings(max_examples=40, deadline=None)
@given(sizes())
def test_every_table_is_valid(given_sizes):
    validate(make_table(*given_sizes))


@settings(max_examples=150, deadline=None)
@given(sizes(), st.data())
def test_one_wrong_entry_is_always_refused(given_sizes, data):
    table = make_table(*given_sizes)
    name = data.draw(st.sampled_from(ARRAYS))
    array = getattr(table, name).copy()
    at = tuple(data.draw(st.integers(0, size - 1)) for size in array.shape)
    wrong = data.draw(st.integers(-2, max(table.microbatches, 5)))
    assume(wrong != array[at])
    array[at] = wrong
    with pytest.raises(ValueError, match=rf"^pipeline table '{table.schedule}': "):
        validate(dataclasses.replace(table, **{name: array}))


@settings(max_examples=60, deadline=None)
@given(sizes(), st.data())
def test_a_lost_or_doubled_tick_is_always_refused(given_sizes, data):
    table = make_table(*given_sizes)
    tick = data.draw(st.integers(0, table.ticks - 1))
    ticks = [t for t in range(table.ticks) for _ in range(data.draw(st.sampled_from((0, 2))) if t == tick else 1)]
    with pytest.raises(ValueError, match=rf"^pipeline table '{table.schedule}': "):
        validate(dataclasses.replace(table, **{name: getattr(table, name)[ticks] for name in ARRAYS}))


@pytest.mark.parametrize(
    ("schedule", "changes", "message"),
    [
        ("1f1b", {("op", (1, 1, 1)): 0}, "tick 1, stage 1, slot 1: an idle slot names something"),
        ("1f1b", {("op", (0, 0, 0)): 9}, "tick 0, stage 0, slot 0: there is no op 9"),
        ("1f1b", {("chunk", (0, 0, 0)): 1}, "there is no microbatch 0 of chunk 1"),
        ("1f1b", {("stash", (0, 0, 0)): 3}, "FORWARD cannot have stash buffer 3 of 3"),
        ("1f1b", {("deferred", (0, 0, 0)): 0}, "FORWARD cannot have deferred buffer 0 of 0"),
        (
            "1f1b",
            {("micro", (1, 1, 0)): 1},
            "tick 1, stage 1, slot 0: the activation of microbatch 1 has not just arrived",
        ),
        ("1f1b", {("micro", (1, 0, 0)): 0}, "tick 1, stage 0, slot 0: a second forward of microbatch 0"),
        ("1f1b", {("stash", (1, 0, 0)): 0}, "tick 1, stage 0, slot 0: stash buffer 0 is still in use"),
        ("1f1b", {("stash", (2, 0, 1)): 1}, "stash buffer 1 does not hold the input of microbatch 0"),
        ("zero_bubble", {("deferred", (3, 0, 2)): 1}, "tick 3, stage 0, slot 2: deferred buffer 1 holds another"),
        ("zero_bubble", {("deferred", (2, 1, 1)): 0}, "tick 2, stage 1, slot 1: deferred buffer 0 is still in use"),
    ],
)
def test_faults_are_named(schedule, changes, message):
    table = make_table(schedule, 2, 3)
    arrays = {name: getattr(table, name).copy() for name in ARRAYS}
    for (name, at), value in changes.items():
        arrays[name][at] = value
    with pytest.raises(ValueError) as caught:
        validate(dataclasses.replace(table, **arrays))
    assert str(caught.value).endswith(message)


def test_faults_of_the_whole_are_named():
    table = make_table("1f1b", 2, 3)
    with pytest.raises(ValueError, match="not all arrays are int32"):
        validate(dataclasses.replace(table, op=table.op[:-1]))
    with pytest.raises(ValueError, match="at the end stage 0 lacks 1 forwards, 0 backwards and 0 weight gradients"):
        validate(dataclasses.replace(table, microbatches=4))
    shorter = {name: getattr(table, name)[:-1] for name in ARRAYS}
    with pytest.raises(ValueError, match="at the end stage 0 lacks 0 forwards, 1 backwards and 0 weight gradients"):
        validate(dataclasses.replace(table, **shorter))
    late = {name: np.insert(getattr(table, name), 2, 0 if name == "op" else -1, axis=0) for name in ARRAYS}
    with pytest.raises(ValueError, match="tick 3, stage 0, slot 1: the cotangent of microbatch 0 has not just arrived"):
        validate(dataclasses.replace(table, **late))  # a value waits for no one


def test_a_neighbour_gets_one_value_a_tick():
    table = make_table("gpipe", 1, 2)
    forwards = [0, 1]  # both ticks' forwards in the two slots of one
    arrays = {name: getattr(table, name).copy() for name in ARRAYS}
    for name in ARRAYS:
        arrays[name][0, 0] = getattr(table, name)[forwards, 0, 0]
        arrays[name][1, 0] = 0 if name == "op" else -1
    with pytest.raises(ValueError, match="tick 0, stage 0, slot 1: a second value for the same neighbour in one tick"):
        validate(dataclasses.replace(table, **arrays))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1fb", 2, 2), "pipeline_schedule: unknown schedule '1fb' (did you mean '1f1b'?); available: 1f1b, gpipe"),
        (
            ("interleaved", 2, 2),
            "pipeline_schedule: interleaved needs several chunks per stage; set pipeline_chunks to 2",
        ),
        (
            ("1f1b", 2, 2, 2),
            "pipeline_chunks: 2 chunks do not go with pipeline_schedule=1f1b; set pipeline_chunks to 1",
        ),
        (("zero_bubble", 2, 2, 3), "pipeline_chunks: 3 chunks do not go with pipeline_schedule=zero_bubble"),
        (("gpipe", 0, 2), "pipeline_parallel: 0 is too small for a pipeline; set it to 1 or more"),
        (("gpipe", 2, -1), "gradient_accumulation_steps: -1 is too small for a pipeline; set it to 1 or more"),
        (("interleaved", 2, 2, 0), "pipeline_chunks: 0 is too small for a pipeline; set it to 1 or more"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError) as caught:
        make_table(*arguments)
    assert str(caught.value).startswith("training.") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_and_pictures_need_no_jax():
    code = "import sys, apt_jax.trainops.distributed.pipeline.picture; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
