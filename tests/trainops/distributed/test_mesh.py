"""Strategies become axis sizes; rules become shardings; what does not fit is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError
from apt_jax.core.logical import MESH_AXES, constrain, use_rules
from apt_jax.trainops.distributed.mesh import axis_sizes, make_mesh
from apt_jax.trainops.distributed.rules import make_rules, param_shardings, state_shardings

SMALL, LARGE = 10**6, 10**10


@pytest.mark.parametrize(
    ("config", "parameters", "expected"),
    [
        (DistributedConfig(), SMALL, {"data": 8}),
        (DistributedConfig(), LARGE, {"fsdp": 8}),
        (DistributedConfig(strategy="ddp"), LARGE, {"data": 8}),
        (DistributedConfig(strategy="fsdp"), SMALL, {"fsdp": 8}),
        (DistributedConfig(strategy="tensor"), SMALL, {"tensor": 8}),
        (DistributedConfig(strategy="tensor", tensor_parallel=2), SMALL, {"tensor": 2, "data": 4}),
        (DistributedConfig(strategy="fsdp", tensor_parallel=2), SMALL, {"tensor": 2, "fsdp": 4}),
        (DistributedConfig(data_parallel=2, tensor_parallel=2), SMALL, {"data": 2, "fsdp": 2, "tensor": 2}),
        (DistributedConfig(world_size=2), SMALL, {"data": 2}),
    ],
)  # fmt: skip
def test_strategies(config, parameters, expected):
    sizes = axis_sizes(config, 8, parameters)
    assert {axis: size for axis, size in sizes.items() if size > 1} == expected
    assert tuple(sizes) == MESH_AXES


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistributedConfig(strategy="fspd"), "did you mean 'fsdp'"),
        (DistributedConfig(world_size=16), "asks for 16 devices, 8 present"),
        (DistributedConfig(data_parallel=3), "make the product equal"),
        (DistributedConfig(tensor_parallel=3), "make the product equal"),
        (DistributedConfig(pipeline_parallel=2), "pipeline_parallel: 2 is not available"),
        (DistributedConfig(context_parallel=2), "context_parallel: 2 is not available"),
    ],
)
def test_what_does_not_fit(config, message):
    with pytest.raises(ConfigError, match=message):
        axis_sizes(config, 8, SMALL)


@pytest.fixture
def rules():
    sizes = axis_sizes(DistributedConfig(strategy="hybrid", fsdp_parallel=4, tensor_parallel=2), 8, SMALL)
    return make_rules(make_mesh(sizes), {"expert_mlp": ("tensor",)})


def test_a_mesh_axis_serves_an_array_once(rules):
    assert rules.spec(("embed", "mlp")) == P(("fsdp",), ("tensor",))
    assert rules.spec(("batch", "seq", "embed")) == P(("fsdp",))
    assert rules.spec(("layers", "heads", "mlp")) == P(None, ("tensor",))
    assert rules.spec(("expert_mlp",)) == P(("tensor",))


def test_unknown_names_are_errors(rules):
    with pytest.raises(ConfigError, match=r"embd.*did you mean 'embed'"):
        rules.spec(("embd",))
    with pytest.raises(ConfigError, match="unknown mesh axis 'tensr'"):
        make_rules(rules.mesh, {"x": ("tensr",)})


def test_moments_follow_their_parameters_and_scalars_stay_whole(rules):
    params = {"a": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}, "b": jax.ShapeDtypeStruct((8,), jnp.float32)}
    axes = {"a": {"kernel": ("embed", "mlp")}, "b": ("norm",)}
    placed = param_shardings(rules, params, axes)
    tx = optax.masked(optax.adam(1e-3), {"a": {"kernel": True}, "b": False})
    where = state_shardings(rules, tx, params, placed)
    adam = where.inner_state[0]
    assert adam.mu["a"]["kernel"].spec == adam.nu["a"]["kernel"].spec == P(("fsdp",), ("tensor",))
    assert adam.count.spec == P()


def test_constrain_is_the_identity_without_rules_and_pins_with_them(rules):
    x = jnp.ones((8, 4, 2))
    assert constrain(x, ("batch", "seq", "embed")) is x
    with use_rules(rules):
        y = jax.jit(lambda x: constrain(x, ("batch", "seq", "embed")))(x)
    assert y.sharding.spec[0] in ("fsdp", ("fsdp",))
