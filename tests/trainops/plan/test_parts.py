"""Reading what XLA says: buffers at the peak, warnings, products; and what a link and a roofline make of it."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.core.config.schema import ModelConfig
from apt_jax.trainops.distributed.collectives import Collective
from apt_jax.trainops.plan.capture import captured_stderr, compiler_warnings
from apt_jax.trainops.plan.compiled import _refusal, host_bytes, shard_bytes
from apt_jax.trainops.plan.dump import LiveValue, covered, peak_values
from apt_jax.trainops.plan.memory import Facts
from apt_jax.trainops.plan.network import Network, moved
from apt_jax.trainops.plan.roofline import roofline
from apt_jax.trainops.plan.text import size_text, time_text
from apt_jax.trainops.plan.work import compiled_flops, model_flops
from apt_jax.vgpu.scheduler import Device, Link

# 96 bytes of the host's at 7, where all memories together are at their peak; the device's own peak is at 3.
HOST_RANGES = """HloLiveRange (max 9):
  BufferLiveRange:
    early.1{}:1-4
    early.2{}:3-5
    late.1{}:6-8
    stack.1{}:5-9
  Live ranges at 7 (peak):
    stack.1{}: 96 bytes (cumulative: 96 bytes)
    late.1{}: 32 bytes (cumulative: 128 bytes)
"""
HOST_BUFFERS = """BufferAssignment:
allocation 0: size 64, preallocated-temp:
 value: <1 early.1 @0> (size=32,offset=0): f32[8]{0}
 value: <2 early.2 @0> (size=16,offset=32): f32[4]{0}
 value: <3 late.1 @0> (size=32,offset=32): f32[2,4]{1,0}
allocation 1: size 96, color 5, preallocated-temp:
 value: <4 stack.1 @0> (size=96,offset=0): f32[3,8]{1,0:S(5)}
"""
RANGES = """HloLiveRange (max 9):
  BufferLiveRange:
    while.1{}:1-2
  Live ranges at 7 (peak):
    while.1{2}: 64 bytes (cumulative: 64 bytes)
    fusion.3{}: 32 bytes (cumulative: 96 bytes)
    state.1{}: 16 bytes (cumulative: 112 bytes)
  Stack trace breakdown for peak usage: 112 bytes
    other{}: 99 bytes (cumulative)
"""
BUFFERS = """BufferAssignment:
allocation 0: size 16, parameter 0, shape |f32[4]| at ShapeIndex {}, maybe-live-out:
 value: <1 state.1 @0> (size=16,offset=0): f32[4]{0}
allocation 1: size 128, preallocated-temp:
 value: <2 fusion.3 @0> (size=32,offset=64): bf16[4,4]{1,0}
 value: <3 while.1{2} (phi) @0> (size=64,offset=0): f32[4,4]{1,0}
 value: <4 while.1{1} (phi) @0> (size=64,offset=0): f32[4,4]{1,0}
 value: <5 dead @0> (size=32,offset=96): f32[8]{0}
"""


def test_values_at_the_peak():
    assert peak_values(RANGES, BUFFERS) == (
        LiveValue("fusion.3", "bf16", (4, 4), 64, 32),
        LiveValue("while.1", "f32", (4, 4), 0, 64),
    )
    assert peak_values("", BUFFERS) is None


def test_the_peak_is_the_devices_own():
    early = LiveValue("early.1", "f32", (8,), 0, 32), LiveValue("early.2", "f32", (4,), 32, 16)
    assert peak_values(HOST_RANGES, HOST_BUFFERS) == early
    on_device = HOST_BUFFERS.replace("color 5, ", "")
    assert peak_values(HOST_RANGES, on_device) == (
        LiveValue("late.1", "f32", (2, 4), 32, 32),
        LiveValue("stack.1", "f32", (3, 8), 0, 96),
    )


def test_shared_buffers_count_once():
    a, b, c = (LiveValue(name, "f32", (1,), at, size) for name, at, size in (("a", 0, 64), ("b", 32, 48), ("c", 70, 4)))
    assert [(v.instruction, share) for v, share in covered((c, b, a))] == [("a", 64), ("b", 16), ("c", 0)]


def test_printing_below_python_is_kept():
    with captured_stderr() as printed:
        os.write(2, b"from C++\n")
    assert printed.text == "from C++\n"


def test_warnings_of_the_compiler():
    line = (
        "W spmd_partitioner.cc:1] [SPMD] Involuntary full rematerialization. The compiler cannot go from {a} to "
        'HLO operation: %copy = f32[8,4]{1,0} copy(%x), metadata={op_name="jit(_train_step)/while/gather"}. As the last'
    )
    assert compiler_warnings(f"{line}\n{line}\nother") == (
        "involuntary full rematerialisation of f32[8,4] in while/gather: its sharding changes in one place (×2)",
    )
    assert compiler_warnings("") == ()


def test_a_compiler_that_refuses_is_one_line():
    text = "RESOURCE_EXHAUSTED: Ran out of memory\n on HBM (81.53G) exceeds available HBM (15.75G)"
    target = SimpleNamespace(device=SimpleNamespace(label="TPU v5e"))
    assert str(_refusal(text, target)).endswith("it needs 81.53GiB of 15.75GiB, says the compiler of TPU v5e")
    assert "\n" not in str(_refusal("INTERNAL: a\nb", target))


def test_pinned_host_memory_is_told_apart():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))

    array = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))
    assert host_bytes({"a": array, "b": array}, ["pinned_host", "device"]) == shard_bytes(array) == 2 * 4 * 4


def test_products_count_as_often_as_they_run():
    def step(x, w):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    x, w = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((10, 32, 32), jnp.float32)
    text = jax.jit(step).lower(x, w).compile().as_text()
    assert compiled_flops(text) == 10 * 2 * 16 * 32 * 32
    assert compiled_flops(jax.jit(jnp.tanh).lower(x).compile().as_text()) is None


def test_branches_of_a_pipelines_loop_count_as_often_as_a_stage_takes_them():
    def step(x, kinds):
        branches = (lambda x: x, lambda x: jnp.tanh(x @ x), lambda x: jnp.tanh(x @ x @ x))
        return jax.lax.scan(lambda h, kind: (jax.lax.switch(kind, branches, h), None), x, kinds)[0]

    x, kinds = jax.ShapeDtypeStruct((16, 16), jnp.float32), jax.ShapeDtypeStruct((10,), jnp.int32)
    text = jax.jit(step).lower(x, kinds).compile().as_text()
    assert compiled_flops(text, ticks=10, runs=4) == pytest.approx(4 * 3 * 2 * 16**3)


def test_one_kind_of_work_in_two_slots_counts_once():
    def step(x, kinds):
        def slot(h, busy):
            inner = lambda h: jax.lax.cond(h[0, 0] > 0, lambda h: jnp.tanh(h @ h), lambda h: h, h)  # noqa: E731
            return jax.lax.cond(busy, lambda h: inner(jnp.tanh(h @ h @ h)), lambda h: h, h)

        def other(h, busy):
            return jax.lax.cond(busy, lambda h: jnp.tanh(h @ h), lambda h: h, h)

        return jax.lax.scan(lambda h, k: (slot(other(slot(h, k > 0), k > 1), k > 2), None), x, kinds)[0]

    x, kinds = jax.ShapeDtypeStruct((16, 16), jnp.float32), jax.ShapeDtypeStruct((10,), jnp.int32)
    text = jax.jit(step).lower(x, kinds).compile().as_text()
    product = 2 * 16**3
    assert compiled_flops(text, ticks=10, runs=4) == pytest.approx(4 * (3 + 3 + 1) * product)
    assert compiled_flops(text, ticks=10, runs=4, same_once=True) == pytest.approx(4 * (3 + 1) * product)
    assert compiled_flops(text, ticks=10, runs=4, nested=0.5) == pytest.approx(4 * (2.5 + 2.5 + 1) * product)


def test_flops_of_a_model():
    model = replace(ModelConfig(), hidden_size=64, num_layers=2, num_attention_heads=4, sliding_window=None)
    plain = model_flops(model, 1000, 10, 8, 100)
    assert plain == 6 * 1000 * 10 + 12 * 2 * 64 * 4.5 * 10
    untied = model_flops(replace(model, tie_word_embeddings=False), 1000 + 6400, 10, 8, 100)
    assert untied == plain
    # With a window of 2, the first token sees one key and all others two.
    narrow = model_flops(replace(model, sliding_window=2), 1000, 10, 8, 100)
    assert narrow == 6 * 1000 * 10 + 12 * 2 * 64 * (15 / 8) * 10


FAST, SLOW = Link("fast", 4, 100.0, 0.0), Link("slow", None, 10.0, 1.0)


def network(shape=(2, 4), names=("data", "tensor")):
    devices = np.array([SimpleNamespace(id=i) for i in range(8)], dtype=object).reshape(shape)
    return Network(SimpleNamespace(devices=devices, axis_names=names, size=8), (FAST, SLOW))


def collective(kind, axes, size=400, count=1, groups=()):
    return Collective(kind, axes, size, count, "", False, groups)


def test_axes_lie_on_links():
    assert network().axis_level("tensor") == "fast" and network().axis_level("data") == "slow"
    assert network((8, 1)).axis_level("tensor") is None
    assert network().spread(collective("all-gather", ("data", "tensor"))) == [(4, 1), (2, 4)]
    assert network().spread(collective("all-gather", ("data",))) == [(1, 1), (2, 1)]


def test_seconds_on_links():
    inside, across, both, permute = network().traffic(
        [
            collective("all-reduce", ("tensor",)),
            collective("all-reduce", ("data",)),
            collective("all-gather", ("data", "tensor"), count=2),
            collective("collective-permute", ("data",), groups=((0, 4), (4, 0))),
        ]
    )[::-1]
    assert dict(inside.seconds) == {"fast": 2 * 3 / 4 * 400 / 100} and inside.level == "fast"
    by = {(t.kind, t.axes): t for t in (across, both, permute)}
    assert dict(by["all-reduce", ("data",)].seconds) == {"slow": 2 * 1 / 2 * 400 / 10 + 1}
    # A host gets what is missing once, shared out over its four devices' ports.
    together = by["all-gather", ("data", "tensor")]
    assert dict(together.seconds) == {"fast": 2 * 3 / 4 * 400 / 100, "slow": 2 * (1 / 2 * 400 / 4 / 10 + 1)}
    assert together.level == "slow" and together.executions == 2 and together.bytes == 800
    assert dict(by["collective-permute", ("data",)].seconds) == {"slow": 400 / 10 + 1}


def test_slices_are_apart_whatever_their_ids():
    devices = np.array([SimpleNamespace(id=i * 7, slice_index=i % 2) for i in range(4)], dtype=object)
    mesh = SimpleNamespace(devices=devices, axis_names=("data",), size=4)
    assert Network(mesh, (FAST, SLOW)).spread(collective("all-gather", ("data",))) == [(2, 1), (2, 2)]


def test_what_must_cross_a_link():
    assert moved("all-reduce", 100, 4, 1) == 150 and moved("reduce-scatter", 100, 4, 1) == 75
    assert moved("all-to-all", 100, 2, 8) == 50 and moved("collective-permute", 100, 2, 8) == 100


def test_roofline():
    device = Device("d", "D", "cpu", 1, 1, {"fp32": 10.0, "bf16": 100.0}, 5.0, (SLOW,))
    traffic = network().traffic([collective("all-reduce", ("data",), 100)])
    found = roofline(
        device, dtype="bf16", flops=1000.0, model_flops=600.0, traffic_bytes=20.0, collectives=traffic, bubble=0.5
    )
    assert (found.compute, found.memory, found.network) == (20.0, 4.0, 11.0)
    assert (found.bound, found.serial, found.limit, found.dtype) == (20.0, 35.0, "compute", "bf16")
    assert found.mfu == pytest.approx(600 / 100 / 20)


def test_causes():
    facts = Facts(frozenset({(32, 64), (4, 32, 64)}), frozenset({500, 1000}), frozenset({4}), tokens=24)
    gather = SimpleNamespace(opcode="all-gather-done")
    assert facts.cause("bf16", (64, 32), gather) == "communication"
    assert facts.cause("f32", (64, 1, 32), None) == "gradients"
    assert facts.cause("bf16", (4, 32, 64), None) == "weight_copies"
    assert facts.cause("f32", (24, 500), None) == "logits"
    assert facts.cause("bf16", (4, 2, 12, 32), None) == "saved_activations"
    assert facts.cause("bf16", (2, 12, 32), None) == "working"


def test_units():
    assert [size_text(n) for n in (0, 999, 2**20, 10 * 2**30, 2**40)] == ["0 B", "999 B", "1 MiB", "10 GiB", "1 TiB"]
    assert [time_text(s) for s in (2.5, 0.25, 2e-5)] == ["2.5 s", "250 ms", "20 µs"]
