"""The reader of compiled programs: every form of the text, and real programs whose collectives are known."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from apt_jax.core.layout import MESH_AXES
from apt_jax.trainops.distributed.collectives import ProgramError, Total, read_collectives, render, summarize
from apt_jax.trainops.distributed.collectives.groups import group_axes, parse_groups
from apt_jax.trainops.distributed.collectives.hlo import shape_bytes
from apt_jax.trainops.distributed.mesh import make_mesh

SIZES = {"pipe": 1, "data": 2, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}


def one(line: str, mesh=SIZES, operand: str = "f32[8,4]{1,0}"):
    """The only collective of a program with one instruction besides its parameter."""
    text = f"HloModule m\n\nENTRY %main (p: {operand}) -> f32[8,4] {{\n  %p = {operand} parameter(0)\n  ROOT {line}\n}}"
    (found,) = read_collectives(text, mesh)
    return found


@pytest.mark.parametrize(
    ("line", "kind", "axes", "size"),
    [
        ("%x = f32[16,4]{1,0} all-gather(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}",
         "all-gather", ("tensor",), 256),
        ("%x = f32[8,4]{1,0} all-reduce(f32[8,4]{1,0} %p), replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add",
         "all-reduce", ("fsdp",), 128),
        ("x = f32[8,4] all-reduce(p), replica_groups={}, to_apply=add",
         "all-reduce", ("data", "fsdp", "tensor"), 128),
        ("%x = f32[2,4] reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add",
         "reduce-scatter", ("fsdp", "tensor"), 128),
        ("%x = f32[2,4] reduce-scatter(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add",
         "reduce-scatter", ("data", "fsdp"), 128),
        ("%x = (f32[8,4], f32[8,4]) all-to-all(%p, /*index=1*/%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}",
         "all-to-all", ("data",), 256),
        ("%x = f32[8,4] collective-permute(%p), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}",
         "collective-permute", ("data",), 128),
        ("%x = f32[8,4] collective-permute(%p), source_target_pairs={{0,3},{3,0}}",
         "collective-permute", ("fsdp", "tensor"), 128),
        ("%x = f32[64,4] ragged-all-to-all(%p, %o, %a, %b, %c, %d), replica_groups={{0,1},{2,3},{4,5},{6,7}}",
         "ragged-all-to-all", ("tensor",), 128),
        ("%x = f32[8,4] collective-broadcast(%p), replica_groups=[4,2]<=[8]", "collective-broadcast", ("tensor",), 128),
        ("%x = f32[8,4] all-reduce(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add",
         "all-reduce", ("fsdp", "tensor"), 128),
        ("%x = f32[8,4] all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, to_apply=%add",
         "all-reduce", ("fsdp",), 128),
        ("%x = f32[8,4] all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}, to_apply=%add",
         "all-reduce", ("data", "tensor"), 128),
        ("%x = f32[8,4] all-reduce(%p), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%a",
         "all-reduce", ("data",), 128),
        ("%x = f32[8,4] all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add",
         "all-reduce", (), 128),
        # Asynchronous forms: what a start yields also holds its operands and contexts.
        ("%x = (f32[8,4], f32[16,4]) all-gather-start(%p), replica_groups=[4,2]<=[8], dimensions={0}",
         "all-gather", ("tensor",), 256),
        ("%x = ((f32[8,4], f32[8,4]), (f32[16,4], f32[16,4])) all-gather-start(%p, %p), replica_groups=[4,2]<=[8]",
         "all-gather", ("tensor",), 512),
        ("%x = f32[8,4] all-reduce-start(%p), replica_groups=[4,2]<=[8], to_apply=%a", "all-reduce", ("tensor",), 128),
        ("%x = ((f32[8,4]), f32[4,4], u32[]) reduce-scatter-start(%p), replica_groups=[4,2]<=[8], to_apply=%add",
         "reduce-scatter", ("tensor",), 128),
        ("%x = (f32[8,4], f32[8,4], u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
         "source_target_pairs={{0,1},{1,0}}", "collective-permute", ("tensor",), 128),
    ],
)  # fmt: skip
def test_forms(line, kind, axes, size):
    found = one(line)
    assert (found.kind, found.axes, found.bytes, found.count, found.conditional) == (kind, axes, size, 1, False)


def test_groups_that_match_no_axes_are_kept():
    found = one("%x = f32[8,4] all-reduce(%p), replica_groups={{0,3},{1,2},{4,7},{5,6}}, to_apply=%add")
    assert found.axes == ("?",) and found.groups == ((0, 3), (1, 2), (4, 7), (5, 6))
    # Half of an axis is not the axis.
    assert one("%x = f32[8,4] all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%a", {"data": 8}).axes == ("?",)


def test_the_name_is_read_past_quotes_and_brackets():
    line = (
        '%x = f32[8,4] all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%a, metadata={op_name="f(x){b}/psum" '
        'stack_frame_id=3}, backend_config={"a":{"b":"}"}}'
    )
    assert one(line).op_name == "f(x){b}/psum"


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[]", 4), ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048), ("pred[3]", 3), ("s4[5]", 3), ("f8e4m3fn[8]{0}", 8),
     ("(f32[2], (s32[4], token[]))", 24), ("f32[0,4]", 0), ("c64[2]", 16), ("f32[<=8,4]", 128)],
)  # fmt: skip
def test_bytes_of_shapes(shape, size):
    assert shape_bytes(shape) == size


def test_text_that_is_no_program_of_this_mesh_is_an_error():
    with pytest.raises(ProgramError, match="no ENTRY"):
        read_collectives("module @jit_f {}", SIZES)
    with pytest.raises(ProgramError, match=r"over device 8: .*data 2 × fsdp 2 × tensor 2 has only 8"):
        one("%x = f32[8,4] all-reduce(%p), replica_groups={{0,8}}, to_apply=%add")
    with pytest.raises(ProgramError, match=r"replica_groups what.*unknown form"):
        parse_groups("what", 8)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_groups_along_axes_are_recognised_in_any_order(data):
    mesh = {axis: data.draw(st.sampled_from([1, 2, 3]), axis) for axis in MESH_AXES[:4]}
    names, sizes = tuple(mesh), tuple(mesh.values())
    axes = data.draw(st.lists(st.sampled_from(names), unique=True))
    at = [names.index(axis) for axis in axes]
    rest = [i for i in range(len(names)) if i not in at]
    ids = np.arange(math.prod(sizes)).reshape(sizes).transpose(rest + at)
    groups = ids.reshape(-1, math.prod(mesh[a] for a in axes)).tolist()
    expected = tuple(axis for axis in names if axis in axes and mesh[axis] > 1)
    shuffled = data.draw(st.permutations(groups))
    assert group_axes(shuffled, mesh) == expected
    shape = f"[{len(groups)},{len(groups[0])}]<=[{','.join(map(str, sizes))}]T({','.join(map(str, rest + at))})"
    assert parse_groups(shape, math.prod(sizes)) == groups


LOOP = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

%less (l: s32[], r: s32[]) -> pred[] {{
  %l = s32[] parameter(0)
  %r = s32[] parameter(1)
  ROOT %lt = pred[] compare(%l, %r), direction=LT
}}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %s = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8] get-tuple-element(%s), index=1
  %one = s32[] constant({step})
  %next = s32[] add(%i, %one)
  %y = f32[8] all-reduce(%x), replica_groups={{}}, to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%next, %y)
}}

%condition (s: (s32[], f32[8])) -> pred[] {{
  %s = (s32[], f32[8]) parameter(0)
  %limit = s32[] constant(7)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %go = pred[] fusion(%i, %limit), kind=kLoop, calls=%less
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8] parameter(0)
  %start = s32[] constant({start})
  %copied = s32[] copy(%start)
  %init = (s32[], f32[8]) tuple(%copied, %p)
  %while = (s32[], f32[8]) while(%init), condition=%condition, body=%body{config}
  ROOT %out = f32[8] get-tuple-element(%while), index=1
}}
"""


@pytest.mark.parametrize(
    ("start", "step", "config", "count"),
    [
        (0, 1, "", 7),
        (3, 1, "", 4),
        (9, 1, "", 0),
        (0, 1, ', backend_config={"known_trip_count":{"n":"5"}}', 5),
        (0, 2, ', backend_config={"known_trip_count":{"n":"4"},"known_init_step":{"init":"0","step":"2"}}', 4),
    ],
)
def test_loops_multiply(start, step, config, count):
    (found,) = read_collectives(LOOP.format(start=start, step=step, config=config), SIZES)
    assert found.count == count


def test_a_loop_of_unknown_length_is_an_error_unless_one_is_supposed():
    text = LOOP.format(start=0, step=2, config="")
    with pytest.raises(ProgramError, match=r"loop while: .*pass unknown_trips"):
        read_collectives(text, SIZES)
    assert read_collectives(text, SIZES, unknown_trips=3)[0].count == 3
    # Without collectives its length does not matter.
    assert read_collectives(text.replace("all-reduce(", "negate("), SIZES) == []


TPU = """HloModule m, is_scheduled=true

%all-reduce-scatter.clone (in: bf16[8,4]) -> bf16[4,4] {
  %in = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %ar = bf16[8,4]{1,0:T(8,128)(2,1)} all-reduce(%in), channel_id=3, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %cut = bf16[4,4]{1,0} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={4,4}
}

%begin (a: bf16[8,4]) -> bf16[16,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  ROOT %g1 = bf16[16,4] all-gather(%a), channel_id=7, replica_groups=[4,2]<=[8], frontend_attributes={chain_id="0"}
}

%finish (b: bf16[8,4]) -> bf16[16,4] {
  %b = bf16[8,4]{1,0} parameter(0)
  ROOT %g2 = bf16[16,4] all-gather(%b), channel_id=7, replica_groups=[4,2]<=[8], frontend_attributes={chain_id="0"}
}

%wrapped (c: bf16[8,4]) -> bf16[8,4] {
  %c = bf16[8,4]{1,0} parameter(0)
  ROOT %a2a = bf16[8,4] all-to-all(%c), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
}, execution_thread="main"

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %rs = bf16[4,4] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.clone
  %async-collective-start = bf16[16,4] fusion(%p), kind=kCustom, calls=%begin
  %async-collective-done = bf16[16,4] fusion(%p), kind=kCustom, calls=%finish
  %s = ((bf16[8,4]), bf16[8,4], s32[]) async-start(%p), calls=%wrapped
  ROOT %d = bf16[8,4] async-done(%s), calls=%wrapped
}
"""


def test_forms_of_accelerators():
    totals = summarize(read_collectives(TPU, SIZES))
    assert totals == {
        ("all-gather", ("tensor",)): Total(1, 128),  # its pieces are one
        ("all-to-all", ("tensor",)): Total(1, 64),  # the end of an asynchronous call is not another
        ("reduce-scatter", ("tensor",)): Total(1, 64),  # a fused all-reduce and slice
    }


def compiled(f, x, spec, **kwargs):
    """Collectives of `f` on local shards of `x`, and their totals."""
    mesh = make_mesh(SIZES)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    text = jax.jit(mapped).lower(x).compile().as_text()
    found = read_collectives(text, dict(mesh.shape), **kwargs)
    return found, summarize(found)


ROWS = P(("data", "fsdp", "tensor"))
X = np.ones((64, 4), np.float32)  # 8 × 4 float32 = 128 bytes on each device


@pytest.mark.parametrize("axes", [("data",), ("tensor",), ("data", "tensor"), ("fsdp", "tensor"), tuple(SIZES)])
@pytest.mark.parametrize(
    ("kind", "operation", "size"),
    [
        ("all-reduce", lambda x, axes: lax.psum(x, axes), lambda n: 128),
        ("all-gather", lambda x, axes: lax.all_gather(x, axes, tiled=True)[:8], lambda n: 128 * n),
        ("reduce-scatter", lambda x, axes: jnp.tile(lax.psum_scatter(x, axes, tiled=True), (8, 1))[:8], lambda n: 128),
        ("all-to-all", lambda x, axes: lax.all_to_all(x, axes, 0, 0, tiled=True), lambda n: 128),
    ],
)  # fmt: skip
def test_real_programs(kind, operation, size, axes):
    axes = tuple(axis for axis in axes if SIZES[axis] > 1)
    ways = math.prod(SIZES[axis] for axis in axes)
    _, totals = compiled(lambda x: operation(x, axes), X, ROWS)
    assert totals == {(kind, axes): Total(1, size(ways))}


def test_a_real_permute():
    swap = lambda x: lax.ppermute(x, "fsdp", [(0, 1), (1, 0)])  # noqa: E731
    assert compiled(swap, X, ROWS)[1] == {("collective-permute", ("fsdp",)): Total(1, 128)}


def test_real_loops_and_branches():
    def f(x):
        def inner(x, _):
            return lax.psum(x, "fsdp") * 0.5, None

        def outer(x, _):
            x = lax.scan(inner, lax.psum(x, "data"), length=3)[0]
            return lax.cond(x[0, 0] > 0, lambda x: lax.psum(x, "tensor"), lambda x: x + 1, x), None

        return lax.scan(outer, x, length=5)[0]

    found, totals = compiled(f, X, ROWS)
    assert totals == {
        ("all-reduce", ("data",)): Total(5, 5 * 128),
        ("all-reduce", ("fsdp",)): Total(15, 15 * 128),
        ("all-reduce", ("tensor",)): Total(5, 5 * 128, conditional=5),
    }
    assert {c.axes for c in found if c.conditional} == {("tensor",)}
    assert all("psum" in c.op_name for c in found)


def test_a_real_loop_that_depends_on_data():
    f = lambda x: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: lax.psum(x, "data"), x)  # noqa: E731
    with pytest.raises(ProgramError, match="depends on data"):
        compiled(f, X, ROWS)
    assert compiled(f, X, ROWS, unknown_trips=4)[1] == {("all-reduce", ("data",)): Total(4, 512)}


def test_what_the_partitioner_makes():
    """A matmul over a cut inner dimension, partitioned by XLA."""
    mesh = make_mesh(SIZES)

    def arg(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    step = jax.jit(lambda x, w: x @ w, out_shardings=NamedSharding(mesh, P("data")))
    text = step.lower(arg((8, 16), "data", "tensor"), arg((16, 4), "tensor", "fsdp")).compile().as_text()
    totals = summarize(read_collectives(text, dict(mesh.shape)))
    assert {key for key in totals} <= {
        ("all-gather", ("fsdp",)), ("all-reduce", ("tensor",)), ("all-gather", ("tensor",))
    }  # fmt: skip
    assert ("all-reduce", ("tensor",)) in totals


def test_the_table():
    found = one("%x = f32[8,4] all-reduce(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add")
    assert render(summarize([found])).splitlines() == [
        "collective  axes    executions  bytes per device",
        "all-reduce  tensor  1           128",
    ]
    assert render({}) == "no collectives"
