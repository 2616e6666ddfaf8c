"""Expert exchange: what is sent comes back, equals one device, and costs the collectives that theory says."""

from __future__ import annotations

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES
from apt_jax.core.logical import use_rules
from apt_jax.trainops.distributed.collectives import Total, read_collectives, summarize
from apt_jax.trainops.distributed.expert import (
    capacity_combine,
    capacity_dispatch,
    capacity_for,
    ragged_combine,
    ragged_dispatch,
)
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.rules import make_rules

E, K, D, F = 8, 2, 6, 4
TOKENS = 8  # on each device
ROWS = ("data", "fsdp", "expert")
MESHES = {
    "2 data tensor": {"expert": 2, "data": 2, "tensor": 2},
    "2 data fsdp": {"expert": 2, "fsdp": 2, "data": 2},
    "4 fsdp": {"expert": 4, "fsdp": 2},
    "8": {"expert": 8},
}


def mesh_of(sizes):
    return make_mesh({axis: sizes.get(axis, 1) for axis in MESH_AXES})


def token_shards(sizes):
    return math.prod(sizes.get(axis, 1) for axis in ROWS)


def as_documented(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """`ragged_all_to_all` by its documentation, from everything that everybody has."""
    everywhere = partial(lax.all_gather, axis_name=axis_name)
    me = lax.axis_index(axis_name)
    rows_SND = everywhere(operand)
    from_S, size_S, to_S = (everywhere(a)[:, me] for a in (input_offsets, send_sizes, output_offsets))
    at_M = jnp.arange(output.shape[0])
    for source in range(lax.axis_size(axis_name)):
        # Each side states the size; they must agree.
        size = jnp.where(size_S[source] == recv_sizes[source], size_S[source], 10**6)
        inside_M = (at_M >= to_S[source]) & (at_M < to_S[source] + size)
        index_M = jnp.where(inside_M, from_S[source] + at_M - to_S[source], operand.shape[0])
        output = jnp.where(inside_M[:, None], rows_SND[source].at[index_M].get(mode="fill", fill_value=jnp.nan), output)
    return output


@pytest.fixture
def ragged_on_cpu(monkeypatch):
    monkeypatch.setattr(lax, "ragged_all_to_all", as_documented)


def experts_of(rows_GMD, params):
    """A small network per expert, hidden units cut over `tensor`."""
    a_GDF, b_GFD = params
    hidden_GMF = jnp.tanh(jnp.einsum("GMD,GDF->GMF", rows_GMD, a_GDF))
    return lax.psum(jnp.einsum("GMF,GFD->GMD", hidden_GMF, b_GFD), "tensor")


def grouped_experts_of(rows_MD, sizes, params):
    a_GDF, b_GFD = params
    hidden_MF = jnp.tanh(lax.ragged_dot(rows_MD, a_GDF, sizes))
    return lax.psum(lax.ragged_dot(hidden_MF, b_GFD, sizes), "tensor")


def by_capacity(x_TD, experts_TK, weights_TK, params, capacity):
    rows, route = capacity_dispatch(x_TD, experts_TK, E, capacity)
    y = rows if params is None else experts_of(rows, params)
    return capacity_combine(y, route, weights_TK), route.dropped[None]


def by_ragged(x_TD, experts_TK, weights_TK, params, factor=None, ragged=None):
    rows, route = ragged_dispatch(x_TD, experts_TK, E, factor, ragged)
    y = rows if params is None else grouped_experts_of(rows, route.group_sizes, params)
    return ragged_combine(y, route, weights_TK), route.dropped[None]


PARAM_SPECS = (P("expert", None, "tensor"), P("expert", "tensor"))


def mapped(layer, sizes, params=True):
    specs = (P(ROWS), P(ROWS), P(ROWS), PARAM_SPECS if params else None)
    run = jax.shard_map(layer, mesh=mesh_of(sizes), in_specs=specs, out_specs=(P(ROWS), P(ROWS)), check_vma=False)
    return jax.jit(run)  # op by op it would take minutes


def on_one_device(x_TD, experts_TK, weights_TK, params):
    """Every expert on every token, then those chosen."""
    a_EDF, b_EFD = params
    y_TED = jnp.einsum("TEF,EFD->TED", jnp.tanh(jnp.einsum("TD,EDF->TEF", x_TD, a_EDF)), b_EFD)
    y_TKD = jnp.take_along_axis(y_TED, experts_TK[..., None], axis=1)
    return jnp.einsum("TKD,TK->TD", y_TKD, weights_TK)


def kept_by_capacity(experts_TK, capacity):
    """Of one device, in a loop: earlier tokens first."""
    used, kept = np.zeros(E, int), np.zeros(experts_TK.shape, bool)
    for t, k in np.ndindex(*experts_TK.shape):
        kept[t, k] = used[experts_TK[t, k]] < capacity
        used[experts_TK[t, k]] += 1
    return kept


def per_device(f, experts, shards):
    return np.concatenate([f(part) for part in np.split(np.asarray(experts), shards)])


def kept_by_room(experts_TK, shards, room):
    """Of one group of `shards` devices: receivers fill in the order of senders, of one sender by expert."""
    kept = np.zeros(experts_TK.shape, bool)
    used, owner = np.zeros(shards, int), experts_TK // (E // shards)
    per = len(experts_TK) // shards
    for source in range(shards):
        mine = [(experts_TK[t, k], t, k) for t in range(source * per, (source + 1) * per) for k in range(K)]
        for _, t, k in sorted(mine):
            kept[t, k] = used[owner[t, k]] < room
            used[owner[t, k]] += 1
    return kept


def inputs(shards, experts=None, seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    x = jax.random.normal(keys[0], (TOKENS * shards, D))
    scores = jax.random.normal(keys[1], (TOKENS * shards, E))
    weights, chosen = lax.top_k(jax.nn.softmax(scores), K)
    experts = chosen if experts is None else jnp.broadcast_to(experts, chosen.shape).astype(jnp.int32)
    params = jax.random.normal(keys[2], (E, D, F)), jax.random.normal(keys[3], (E, F, D))
    return x, experts, weights / weights.sum(-1, keepdims=True), params, jax.random.normal(keys[4], x.shape)


ROUTINGS = {
    "by score": None,
    "all to one expert": 5,
    "some empty": np.asarray([0, 3]),
    "twice the same": np.asarray([7, 7]),
}
LAYERS = {
    "capacity": partial(by_capacity, capacity=TOKENS * K),
    "emulated": partial(by_ragged, ragged=False),
    "ragged": partial(by_ragged, ragged=True),
}


@partial(jax.jit, static_argnums=0)
def values_and_gradients(f, x, experts, weights, params, target):
    """y and dropped, and the gradients of the inputs."""

    def loss(x, weights, params):
        y, dropped = f(x, experts, weights, params)
        return jnp.sum(y * target), (y, dropped)

    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, weights, params)
    return out, gradients


def reference(x, experts, weights, params, kept=1.0):
    return on_one_device(x, experts, weights * kept, params), jnp.zeros(())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mesh", MESHES)
def test_equals_one_device_in_values_and_gradients(mesh, layer, ragged_on_cpu):
    distributed = mapped(LAYERS[layer], MESHES[mesh])
    for routing in ROUTINGS.values():
        args = inputs(token_shards(MESHES[mesh]), routing)
        (want, _), want_gradients = values_and_gradients(reference, *args)
        (y, dropped), gradients = values_and_gradients(distributed, *args)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        assert int(dropped.sum()) == 0


@pytest.mark.parametrize("layer", ["capacity", "emulated", "ragged"])
def test_dropped_assignments_add_nothing_and_are_counted(layer, ragged_on_cpu):
    sizes, shards = {"expert": 4, "fsdp": 2}, 8
    experts = inputs(shards, seed=1)[1]
    if layer == "capacity":
        distributed = mapped(partial(by_capacity, capacity=2), sizes)
        kept = per_device(partial(kept_by_capacity, capacity=2), experts, shards)
    else:
        distributed = mapped(partial(by_ragged, factor=1.0, ragged=layer == "ragged"), sizes)
        # Devices that exchange with one another hold neighbouring rows: `expert` is the last of the axes.
        kept = per_device(partial(kept_by_room, shards=4, room=TOKENS * K), experts, 2)
    assert 0 < (~kept).sum() < kept.size / 2
    args = inputs(shards, seed=1)
    (want, _), want_gradients = values_and_gradients(partial(reference, kept=jnp.asarray(kept)), *args)
    (y, dropped), gradients = values_and_gradients(distributed, *args)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dropped, [(~part).sum() for part in np.split(kept, shards)])


@cache
def identity(layer, shards):
    kind, bound = layer
    f = partial(by_capacity, capacity=bound) if kind == "capacity" else partial(by_ragged, factor=bound, ragged=False)
    run = mapped(f, {"expert": shards, "data": 8 // shards}, params=False)
    return lambda x, experts, weights: run(x, experts, weights, None)


@settings(deadline=None, max_examples=25)
@given(st.data())
@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("layer", [("ragged", None), ("ragged", 1.25), ("capacity", 3)], ids=str)
def test_there_and_back_is_the_identity(layer, shards, data):
    """Weights are powers of two that sum to 1, so that sums are exact."""
    few = data.draw(st.integers(1, E))
    flat = data.draw(st.lists(st.integers(0, few - 1), min_size=8 * TOKENS * K, max_size=8 * TOKENS * K))
    experts = np.asarray(flat, np.int32).reshape(-1, K)
    x, _, _, _, _ = inputs(8)
    weights = jnp.tile(jnp.asarray([0.25, 0.75]), (len(experts), 1))
    y, dropped = identity(layer, shards)(x, experts, weights)
    kind, bound = layer
    if kind == "capacity":
        kept = per_device(partial(kept_by_capacity, capacity=bound), experts, 8)
    elif bound is None:
        kept = np.ones(experts.shape, bool)
    else:
        room = math.ceil(TOKENS * K * bound)
        kept = per_device(partial(kept_by_room, shards=shards, room=room), experts, 8 // shards)
    np.testing.assert_array_equal(y, x * (weights * kept).sum(-1, keepdims=True))
    assert int(dropped.sum()) == (~kept).sum()


def test_rows_are_grouped_by_expert_and_then_by_source():
    """Each token carries its source and its expert."""
    shards = 4
    experts = np.random.default_rng(0).integers(0, E, (TOKENS * shards, 1)).astype(np.int32)
    source = np.repeat(np.arange(shards), TOKENS)[:, None]
    x = np.concatenate([experts, source, np.ones_like(experts)], axis=1).astype(np.float32)

    def f(x, experts):
        rows, route = ragged_dispatch(x, experts, E)
        return rows, route.group_sizes

    mesh, spec = mesh_of({"expert": shards}), P("expert")
    run = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    rows, sizes = map(np.asarray, jax.jit(run)(x, experts))
    np.testing.assert_array_equal(sizes, np.bincount(experts[:, 0], minlength=E))
    for device, block in enumerate(np.split(rows, shards)):
        mine = [tuple(row) for row in x if row[0] // (E // shards) == device]
        assert [tuple(row) for row in block[: len(mine)]] == sorted(mine)
        assert not block[len(mine) :].any()


def collectives_of(f, sizes, *args):
    mesh = mesh_of(sizes)
    text = jax.jit(f).lower(*args).compile().as_text()
    # A psum over an axis of size 1 stays in the program, as one over no axes.
    return summarize(one for one in read_collectives(text, dict(mesh.shape)) if one.axes)


def test_collectives_of_a_step_are_those_of_theory():
    sizes = {"expert": 4, "fsdp": 2}
    shards, capacity, float32, int32 = 4, 3, 4, 4
    x, experts, weights, params, target = inputs(8)
    there_and_back, parameters = ("all-to-all", ("expert",)), ("all-reduce", ("fsdp",))
    sum_of_loss = {("all-reduce", ("fsdp", "expert")): Total(1, float32)}
    gradients = float32 * 2 * E * D * F // shards  # of this device's experts, summed over devices that hold them too

    def step(layer):
        loss = lambda x, params: jnp.sum(mapped(layer, sizes)(x, experts, weights, params)[0] * target)  # noqa: E731
        return jax.value_and_grad(loss, (0, 1))

    totals = collectives_of(step(partial(by_capacity, capacity=capacity)), sizes, x, params)
    assert totals.pop(there_and_back) == Total(4, 4 * float32 * E * capacity * D)
    assert totals.pop(parameters).bytes == gradients
    assert totals == sum_of_loss

    totals = collectives_of(step(by_ragged), sizes, x, params)
    assert totals.pop(there_and_back) == Total(4, 4 * float32 * shards * TOKENS * K * D)
    assert totals.pop(("all-gather", ("expert",))) == Total(1, int32 * shards * E)
    assert totals.pop(parameters).bytes == gradients
    assert totals == sum_of_loss


def test_one_shard_sends_nothing():
    sizes = {"data": 8}
    x, experts, weights, params, _ = inputs(8)
    for layer in (partial(by_capacity, capacity=TOKENS * K), by_ragged):
        y, _ = mapped(layer, sizes)(x, experts, weights, params)
        np.testing.assert_allclose(y, on_one_device(x, experts, weights, params), rtol=1e-5, atol=1e-5)
        assert not collectives_of(mapped(layer, sizes), sizes, x, experts, weights, params)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_ragged_path_lowers_for_accelerators(platform):
    sizes = {"expert": 4, "fsdp": 2}
    x, experts, weights, params, _ = inputs(8)

    def loss(x, params):
        return jnp.sum(mapped(partial(by_ragged, ragged=True), sizes)(x, experts, weights, params)[0])

    traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(x, params)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("@ragged_all_to_all") == 4
    assert "stablehlo.all_to_all" not in text


def test_the_platform_chooses(monkeypatch):
    """XLA:CPU has no ragged all-to-all, and says so only when it compiles."""
    sizes = {"expert": 8}
    x, experts, weights, params, _ = inputs(8)

    def lowered(layer):
        f = lambda *args: mapped(layer, sizes)(*args)  # noqa: E731
        return jax.jit(f).lower(x, experts, weights, params)

    assert "ragged_all_to_all" not in lowered(by_ragged).as_text()
    with use_rules(make_rules(mesh_of(sizes), {})):
        assert "ragged_all_to_all" not in lowered(by_ragged).as_text()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"ragged-all-to-all.*not supported by XLA:CPU"):
        lowered(partial(by_ragged, ragged=True)).compile()
    monkeypatch.setattr("apt_jax.trainops.distributed.expert.ragged.target_platform", lambda: "tpu")
    assert "ragged_all_to_all" in lowered(by_ragged).as_text()


def test_low_precision_keeps_its_dtype():
    x, experts, weights, params, _ = inputs(8)
    x, params = x.astype(jnp.bfloat16), jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    for layer in (partial(by_capacity, capacity=TOKENS * K), by_ragged):
        y, _ = mapped(layer, {"expert": 8})(x, experts, weights, params)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y, on_one_device(x, experts, weights, params), rtol=0.1, atol=0.1)


def test_experts_that_do_not_divide_are_an_error():
    x, experts, _, _, _ = inputs(8)
    for dispatch in (lambda x, e: capacity_dispatch(x, e, 12, 2)[0], lambda x, e: ragged_dispatch(x, e, 12)[0]):
        run = jax.shard_map(dispatch, mesh=mesh_of({"expert": 8}), in_specs=P("expert"), out_specs=P("expert"))
        with pytest.raises(ConfigError, match=r"12 experts .* 'expert' of size 8; .*expert_parallel"):
            jax.eval_shape(run, x, experts)


def test_capacity_for():
    assert capacity_for(tokens=1024, k=2, num_experts=8, factor=1.0) == 256
    assert capacity_for(tokens=1024, k=2, num_experts=8, factor=1.25) == 320
    assert capacity_for(tokens=1, k=1, num_experts=64, factor=1.0) == 1
