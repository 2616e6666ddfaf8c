"""Logical axes become mesh axes: for parameters, optimizer state, batches and activations."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import DEFAULT_RULES, MESH_AXES
from apt_jax.core.logical import auto_mesh, constrain, mesh_axes, per_device, rules_in_force, use_rules, ways
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.rules import (
    batch_sharding,
    make_rules,
    param_shardings,
    state_shardings,
    without,
)
from apt_jax.vgpu.scheduler.mesh import Mesh


def rules_of(extra=None, *, sequence_parallel=False, **sizes):
    mesh = make_mesh({axis: sizes.get(axis, 1) for axis in MESH_AXES})
    return make_rules(mesh, extra or {}, sequence_parallel=sequence_parallel)


def parts(spec, ndim):
    """The mesh axes of each dimension, as tuples."""
    filled = [*spec, *[None] * (ndim - len(spec))]
    return [() if p is None else (p,) if isinstance(p, str) else tuple(p) for p in filled]


@pytest.fixture
def rules():
    return rules_of({"expert_mlp": ("tensor",)}, fsdp=4, tensor=2)


# Specs.


def test_a_mesh_axis_serves_an_array_once(rules):
    assert rules.spec(("embed", "mlp")) == P(("fsdp",), ("tensor",))
    assert rules.spec(("batch", "seq", "embed")) == P(("fsdp",))
    assert rules.spec(("layers", "heads", "mlp")) == P(None, ("tensor",))
    assert rules.spec(("expert_mlp",)) == P(("tensor",))
    assert rules.spec((None, "mlp", None)) == P(None, ("tensor",))


def test_embed_takes_pipe_only_outside_of_layers():
    rules = rules_of(pipe=2, fsdp=2, tensor=2)
    assert parts(rules.spec(("vocab", "embed")), 2) == [("tensor",), ("fsdp", "pipe")]
    assert parts(rules.spec(("layers", "embed", "mlp")), 3) == [("pipe",), ("fsdp",), ("tensor",)]
    assert parts(rules.spec((None, "layers", "norm")), 3) == [(), ("pipe",), ()]


def test_a_plugin_may_replace_a_rule():
    rules = rules_of({"embed": ("tensor",), "mlp": ()}, fsdp=4, tensor=2)
    assert rules.spec(("embed", "mlp")) == P(("tensor",))
    assert set(rules.rules) == set(DEFAULT_RULES)


def test_unknown_names_are_errors(rules):
    with pytest.raises(ConfigError, match=r"^parameter a: unknown logical axis 'embd' \(did you mean 'embed'\?\)"):
        rules.spec(("embd",), what="parameter a")
    with pytest.raises(
        ConfigError, match=r"^sharding rule 'x': unknown mesh axis 'tensr'; available: pipe, data, fsdp"
    ):
        make_rules(rules.mesh, {"x": ("tensr",)})


def test_a_size_that_is_not_divided_is_an_error(rules):
    message = (
        r"^parameter w: dimension 1 \(mlp\) has size 7, which mesh axes tensor = 2 do not divide; change the size or "
        r"training\.distributed$"
    )
    with pytest.raises(ConfigError, match=message):
        rules.sharding(("embed", "mlp"), (8, 7), "parameter w")
    two = rules_of(pipe=2, fsdp=4)
    with pytest.raises(ConfigError, match=r"size 12, which mesh axes fsdp×pipe = 8 do not divide"):
        two.sharding(("vocab", "embed"), (3, 12))
    assert rules.sharding(("rank", "norm"), (7, 5)).is_fully_replicated


def test_sequence_parallelism_cuts_only_where_norms_work():
    whole, cut = rules_of(context=2, tensor=4), rules_of(context=2, tensor=4, sequence_parallel=True)
    assert (whole.ways("seq"), whole.ways("norm_seq")) == (2, 2)
    assert (cut.ways("seq"), cut.ways("norm_seq")) == (2, 8)
    assert parts(cut.spec(("batch", "norm_seq", "embed")), 3) == [(), ("context", "tensor"), ()]
    assert parts(cut.spec(("batch", "seq", "heads", "head_dim")), 4) == [(), ("context",), ("tensor",), ()]


def test_without_an_axis_everything_but_the_batch_is_whole_there():
    rules = rules_of(data=2, fsdp=2, tensor=2)
    kept = without(rules, "fsdp")
    assert kept.spec(("embed", "mlp")) == P(None, ("tensor",))
    assert kept.spec(("batch",)) == rules.spec(("batch",)) == P(("data", "fsdp"))
    assert kept.mesh is rules.mesh
    assert rules.spec(("embed", "mlp")) == P(("fsdp",), ("tensor",))


# Trees.


def test_moments_follow_their_parameters_and_scalars_stay_whole(rules):
    params = {"a": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}, "b": jax.ShapeDtypeStruct((8,), jnp.float32)}
    axes = {"a": {"kernel": ("embed", "mlp")}, "b": ("norm",)}
    placed = param_shardings(rules, params, axes)
    tx = optax.masked(optax.adam(1e-3), {"a": {"kernel": True}, "b": False})
    where = state_shardings(rules, tx, params, placed)
    adam = where.inner_state[0]
    assert adam.mu["a"]["kernel"].spec == adam.nu["a"]["kernel"].spec == P(("fsdp",), ("tensor",))
    assert adam.count.spec == P()


def test_a_slot_of_another_shape_stays_whole(rules):
    params = {"w": jax.ShapeDtypeStruct((128, 256), jnp.float32)}
    placed = param_shardings(rules, params, {"w": ("embed", "mlp")})
    where = state_shardings(rules, optax.scale_by_factored_rms(), params, placed)
    assert where.v_row["w"].is_fully_replicated and where.v_col["w"].is_fully_replicated


@pytest.mark.parametrize("axes", [("vocab", "embed"), ("layers", "embed", "mlp")])
@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 4, "pipe": 2}, {"fsdp": 2, "pipe": 4}, {"tensor": 4, "fsdp": 2}, {"tensor": 2, "fsdp": 2, "pipe": 2}],
    ids=str,
)
def test_the_closed_form_cuts_scales_as_training_does(sizes, axes):
    """`Mesh.pieces` says without jax what `state_shardings` does with a slot of other sizes than its parameter's."""
    params = {"w": jax.ShapeDtypeStruct((8,) * len(axes), jnp.float32)}
    rules = rules_of(**sizes)
    placed = param_shardings(rules, params, {"w": axes})
    for shape in itertools.product([1, 2, 4, 6], repeat=len(axes)):
        scales = optax.GradientTransformation(lambda p, s=shape: {"w": jnp.zeros(s)}, lambda u, s, p=None: (u, s))
        slot = state_shardings(rules, scales, params, placed)["w"]
        found = math.prod(shape) // math.prod(slot.shard_shape(shape))
        assert found == Mesh(**sizes).pieces(shape, axes), shape


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "pipe": 2}, {"tensor": 4, "fsdp": 2}, {"tensor": 2, "data": 4}], ids=str)
def test_the_closed_form_refuses_what_training_does(sizes):
    """`Mesh.divides` says without jax whether `AxisRules.spec` takes a parameter."""
    rules, mesh = rules_of(**sizes), Mesh.sized({**dict.fromkeys(MESH_AXES, 1), **sizes})
    for axes in (("vocab", "embed"), ("layers", "embed", "mlp"), ("rank", "heads")):
        for shape in itertools.product([1, 2, 4, 6, 8], repeat=len(axes)):
            refused = nullcontext() if mesh.divides(shape, axes) else pytest.raises(ConfigError, match="do not divide")
            with refused:
                rules.spec(axes, shape)


def test_axes_that_do_not_match_a_shape_name_the_parameter(rules):
    params = {"a": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}
    message = r"^parameter a.kernel: logical axes \('embed',\) do not match its shape \(8, 4\)$"
    with pytest.raises(ConfigError, match=message):
        param_shardings(rules, params, {"a": {"kernel": ("embed",)}})
    with pytest.raises(ConfigError, match=r"^parameter a.kernel: dimension 0 \(vocab\) has size 7"):
        param_shardings(rules, {"a": {"kernel": jnp.ones((7, 4))}}, {"a": {"kernel": ("vocab", "embed")}})


def test_batches_are_cut_by_rows_and_along_the_context():
    rules = rules_of(data=2, expert=2, context=2)
    where = batch_sharding(rules, 4, 8)
    assert parts(where.spec, 2) == [("data", "expert"), ("context",)]
    assert where.shard_shape((8, 8)) == (2, 4)
    assert batch_sharding(rules, 4).spec == where.spec
    with pytest.raises(ConfigError, match=r"^training.batch_size: 6 sequences per microbatch cannot be split over 4 "):
        batch_sharding(rules, 6, 8)
    with pytest.raises(ConfigError, match=r"^data.sequence_length: 7 tokens cannot be split over 2 context-parallel"):
        batch_sharding(rules, 4, 7)


def test_tensor_and_pipeline_devices_see_the_same_rows():
    assert batch_sharding(rules_of(pipe=2, tensor=4), 1, 7).is_fully_replicated


# Activations, `apt_jax.core.logical`.


def pinned(axes, rules):
    def f(x):
        with use_rules(rules):
            return constrain(x, axes)

    return f


def test_constrain_is_the_identity_without_rules_and_pins_with_them(rules):
    x = jnp.ones((8, 4, 2))
    assert constrain(x, ("batch", "seq", "embed")) is x
    y = jax.jit(pinned(("batch", "seq", "embed"), rules))(x)
    assert parts(y.sharding.spec, 3) == [("fsdp",), (), ()]
    one = rules_of()
    assert pinned(("batch", "seq", "embed"), one)(x) is x


def test_rules_hold_only_inside(rules):
    with use_rules(rules):
        assert rules_in_force() is rules and ways("batch") == 4 and ways("norm") == 1
        with use_rules(None):
            assert rules_in_force() is None and ways("batch") == 1
    assert rules_in_force() is None


def test_constrain_names_what_does_not_fit(rules):
    with pytest.raises(ConfigError, match=r"^activation: dimension 0 \(batch\) has size 6, .* fsdp = 4 do not divide"):
        pinned(("batch", "seq"), rules)(jnp.ones((6, 4)))


def test_no_activation_is_cut_along_pipe():
    rules = rules_of(pipe=2, tensor=4)
    y = jax.jit(pinned(("embed", "mlp"), rules))(jnp.ones((8, 8)))
    assert parts(y.sharding.spec, 2) == [(), ("tensor",)]
    assert mesh_axes(rules, ("embed", "mlp")) == ((), ("tensor",))


@pytest.mark.parametrize(
    ("taken", "expected"),
    [({"pipe"}, [("data", "fsdp"), ()]), ({"pipe", "data"}, [("fsdp",), ()]), ({"data", "fsdp"}, [(), ()])],
)
def test_constrain_leaves_out_axes_that_a_shard_map_has_taken(taken, expected):
    rules = rules_of(pipe=2, data=2, fsdp=2)
    seen = []

    def body(x):
        seen.append((mesh_axes(rules, ("batch", None)), set(auto_mesh(rules.mesh).manual_axes)))
        return pinned(("batch", "seq"), rules)(x)

    spec = P(tuple(axis for axis in MESH_AXES if axis in taken))
    f = jax.shard_map(body, mesh=rules.mesh, in_specs=spec, out_specs=spec, axis_names=taken, check_vma=False)
    x = jnp.arange(32.0).reshape(32, 1)
    np.testing.assert_array_equal(jax.jit(f)(x), x)
    assert seen[-1] == (tuple(expected), taken)


def test_mesh_axes_of_each_dimension(rules):
    assert mesh_axes(rules, ("batch", "seq", "heads", None)) == (("fsdp",), (), ("tensor",), ())
    assert mesh_axes(rules, ()) == ()


def test_per_device_gives_every_device_its_shard():
    rules = rules_of(data=2, fsdp=2, tensor=2)
    shapes = []

    def f(x, w):
        shapes.append((x.shape, w.shape))
        return jax.lax.psum(x @ w, "tensor")

    axes = ("batch", "mlp"), ("mlp", "head_dim")
    x, w = jnp.arange(32.0).reshape(8, 4), jnp.arange(12.0).reshape(4, 3)
    y = jax.jit(per_device(f, rules, axes, ("batch", "head_dim")))(x, w)
    np.testing.assert_array_equal(y, x @ w)
    assert set(shapes) == {((2, 2), (2, 3))}


def test_per_device_returns_several_results():
    rules = rules_of(data=4, tensor=2)

    def f(x):
        return x + 1, x.sum(axis=1)

    x = jnp.arange(16.0).reshape(8, 2)
    more, sums = jax.jit(per_device(f, rules, [("batch", None)], (("batch", None), ("batch",))))(x)
    np.testing.assert_array_equal(more, x + 1)
    np.testing.assert_array_equal(sums, x.sum(axis=1))


def test_per_device_inside_a_shard_map_over_pipe():
    rules = rules_of(pipe=2, data=2, tensor=2)
    shapes = []

    def inner(x, w):
        shapes.append((x.shape, w.shape))
        return jax.lax.psum(x @ w, "tensor")

    def stage(x_SBM, w_SMD):
        y = per_device(inner, rules, (("batch", "mlp"), ("mlp", None)), ("batch", None))(x_SBM[0], w_SMD[0])
        return jax.lax.psum(y, "pipe")[None]

    f = jax.shard_map(
        stage, mesh=rules.mesh, in_specs=P("pipe"), out_specs=P("pipe"), axis_names={"pipe"}, check_vma=False
    )
    x, w = jnp.arange(32.0).reshape(2, 4, 4), jnp.arange(24.0).reshape(2, 4, 3)
    expected = np.einsum("sbm,smd->bd", x, w)
    np.testing.assert_array_equal(jax.jit(f)(x, w), np.stack([expected, expected]))
    assert set(shapes) == {((2, 2), (2, 3))}


def test_gradients_pass_through_per_device():
    rules = rules_of(data=4, tensor=2)
    axes = ("batch", "mlp"), ("mlp", None)

    def loss(w, x, f):
        return (f(x, w) ** 2).sum()

    def local(x, w):
        return jax.lax.psum(x @ w, "tensor")

    x, w = jnp.arange(16.0).reshape(4, 4) / 16, jnp.arange(8.0).reshape(4, 2) / 8
    cut = jax.jit(jax.grad(partial(loss, f=per_device(local, rules, axes, ("batch", None)))))(w, x)
    np.testing.assert_allclose(cut, jax.grad(partial(loss, f=jnp.matmul))(w, x), rtol=1e-6)
