"""The share of products that is quantised, against counts made by hand."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.quant.dot import install, measure, quantized_dot
from tests.trainops.engine.tiny import LENGTH, MODEL, make_program
from tests.vgpu.quant.dot.models import quantized_llama

T, D = 32, 16
ONE = 2.0 * T * D * D  # FLOPs of one product
CONTRACT = (((1,), (0,)), ((), ()))
DOT = quantized_dot("nvfp4")
X, W = jnp.ones((T, D)), jnp.ones((D, D))


def counted(f, *args):
    found = measure(jax.make_jaxpr(f)(*args))
    return sum(found.quantized.values()) / ONE, sum(found.plain.values()) / ONE


def test_a_raw_product_is_seen_and_named():
    def f(x, w):
        return jnp.sum(DOT(x, w, CONTRACT) @ w)

    found = measure(jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(X, W))
    assert {name: flops / ONE for name, flops in found.quantized.items()} == {
        "nvfp4 forward": 1, "nvfp4 dgrad": 1, "nvfp4 wgrad": 1,
    }  # fmt: skip
    assert sum(found.plain.values()) == 3 * ONE
    assert all(re.fullmatch(r"test_coverage.py:\d+ f", where) for where in found.plain)
    assert found.share == 0.5
    assert found.overhead == 2 * 2.0 * T * D * 16  # the Hadamard transforms of x and g
    found.require(0.5)
    with pytest.raises(ConfigError, match=r"quantised are 50.0% .* asked for are 51.0%.* is test_coverage.py:\d+ f"):
        found.require(0.51)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x, w: DOT(x, w, CONTRACT), (1, 0)),
        (lambda x, w: x @ w, (0, 1)),
        (lambda x, w: DOT(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), CONTRACT), (1, 0)),
        (lambda x, w: x.astype(jnp.bfloat16) @ w.T.astype(jnp.bfloat16), (0, 1)),
        (lambda x, w: DOT(x, w.T, CONTRACT), (1, 0)),
        (lambda x, w: jax.jit(lambda x: DOT(x, w, CONTRACT) + x @ w)(x), (1, 1)),
        (lambda x, w: jax.vmap(lambda w: DOT(x, w, CONTRACT))(jnp.stack([w, w])), (2, 0)),
        (lambda x, w: jax.lax.scan(lambda c, _: (DOT(c, w, CONTRACT) @ w, None), x, None, length=5)[0], (5, 5)),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda x: DOT(x, w, CONTRACT), lambda x: x @ w @ w, x), (0, 2)),
        (lambda x, w: jnp.einsum("td,dn->tn", x, w), (0, 1)),
        (lambda x, w: jax.lax.ragged_dot(x, jnp.stack([w, w]), jnp.array([T // 2, T // 2])), (0, 1)),
    ],
)
def test_every_way_to_multiply(f, expected):
    assert counted(f, X, W) == expected


def test_gradients_through_scan_and_rematerialisation():
    def loss(w, x, remat):
        def body(x, w):
            return jnp.tanh(DOT(x, w, CONTRACT)), None

        body = jax.checkpoint(body) if remat else body
        return jnp.sum(jax.lax.scan(body, x, w)[0])

    stacked = jnp.stack([W] * 4)
    for remat, products in ((False, 3), (True, 4)):  # the forward product is made again
        assert counted(jax.grad(lambda w, remat=remat: loss(w, X, remat)), stacked) == (products * 4, 0)


def test_gradients_of_grouped_products():
    def f(x, w):
        return jnp.sum(jax.lax.ragged_dot(x, w, jnp.array([T // 2, T // 2])))

    assert counted(jax.grad(f, argnums=(0, 1)), X, jnp.stack([W, W])) == (0, 3)


def test_a_loop_of_unknown_length_counts_once_and_is_listed():
    def f(x, w):
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: DOT(c, w, CONTRACT), x)

    found = measure(jax.make_jaxpr(f)(X, W))
    assert sum(found.quantized.values()) == ONE
    assert len(found.uncounted) == 1 and "all but the first trip of the loop at test_coverage.py" in found.uncounted[0]
    assert "not counted" in found.text()


def test_shards_count_for_all_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.P("data"), jax.P()

    def f(x, w):
        return jax.shard_map(lambda x, w: DOT(x, w, CONTRACT), mesh=mesh, in_specs=(rows, whole), out_specs=rows)(x, w)

    assert counted(f, X, W) == (1, 0)


def test_a_tied_head_is_not_quantised_and_shows():
    model = nnx.eval_shape(lambda: quantized_llama("nvfp4")(MODEL, 64, nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((4, LENGTH), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda state, tokens: nnx.merge(graphdef, state)(tokens))(state, tokens)
    found = measure(jaxpr)
    head = 2.0 * 4 * LENGTH * MODEL.hidden_size * 64
    assert [flops for where, flops in found.plain.items() if "unembed" in where] == [head]


def test_a_train_step():
    """Projections by 6 · parameters · tokens."""
    program, _ = make_program(architecture=quantized_llama("nvfp4"), abstract=True)
    found = measure(program.train_step.trace(program.abstract_state(), program.abstract_batch(LENGTH)).jaxpr)
    layers = program.abstract_state().params["layers"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(layers) if leaf.ndim == 3)
    assert sum(found.quantized.values()) == 6.0 * weights * 8 * LENGTH
    assert 0.7 < found.share < 0.95
    assert any("_attend" in where for where in found.plain)
    assert program.traces == {"train_step": 1}


class Raw(nnx.Module):
    """One layer that can be reached, and one that multiplies on its own."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(D, D, rngs=rngs)
        self.kernel = nnx.Param(jnp.ones((D, D)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x) @ self.kernel[...]


def test_a_module_that_no_rule_reaches():
    model = Raw(nnx.Rngs(0))
    found = install(model, [(".*", "nvfp4")])
    assert [path for path, _ in found.installed] == ["linear"] and not found.skipped
    coverage = measure(jax.make_jaxpr(model)(X))
    with pytest.raises(ConfigError, match=r"50.0%.*__call__"):
        coverage.require(0.9)
