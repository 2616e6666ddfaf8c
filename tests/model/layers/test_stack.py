"""Stacked layers: scanned, unrolled and rematerialised alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core.errors import ModelError
from apt_jax.model.layers.dense import Dense
from apt_jax.model.layers.stack import REMAT_POLICIES, run_layers, stack_layers

L, D = 3, 8
X = np.linspace(-1, 1, 4 * D, dtype=np.float32).reshape(4, D)


def make(rngs: nnx.Rngs) -> Dense:
    return Dense(D, D, axes=("embed", "mlp"), std=0.5, dtype=jnp.dtype("float32"), rngs=rngs)


LAYERS = stack_layers(make, L, jax.random.key(0))


def run(layers: Any, *, scan: bool, remat: Any) -> tuple[jax.Array, Any]:
    def apply(layer: Dense, index: jax.Array, x: jax.Array) -> Any:
        y = jnp.tanh(checkpoint_name(layer(x), "attn_out"))
        return x + jnp.sin(y) * (index + 1), {"size": jnp.sum(y)}

    return run_layers(layers, apply, X, scan=scan, remat=remat)


def gradient(**settings: Any) -> Any:
    graphdef, params = nnx.split(LAYERS)
    loss = lambda params: jnp.sum(run(nnx.merge(graphdef, params), **settings)[0] ** 2)  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))(params)


def test_each_layer_has_its_own_weights_and_a_layers_axis() -> None:
    assert LAYERS.kernel.shape == (L, D, D)
    assert LAYERS.kernel.get_metadata("logical_axes") == ("layers", "embed", "mlp")
    assert not np.allclose(LAYERS.kernel[0], LAYERS.kernel[1])


def test_scan_equals_a_loop_over_single_layers() -> None:
    x, size = X, 0.0
    for i in range(L):
        y = np.tanh(x @ np.asarray(LAYERS.kernel[i]))
        x, size = x + np.sin(y) * (i + 1), size + y.sum()
    for scan in (True, False):
        out, aux = run(LAYERS, scan=scan, remat="none")
        np.testing.assert_allclose(out, x, rtol=1e-5)
        np.testing.assert_allclose(aux["size"], size, rtol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", [*REMAT_POLICIES, jax.checkpoint_policies.everything_saveable])
def test_every_remat_policy_gives_the_same_gradient(remat: Any, scan: bool) -> None:
    loss, grads = gradient(scan=scan, remat=remat)
    expected_loss, expected = gradient(scan=True, remat="none")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected)


def count_matmuls(jaxpr: Any) -> int:
    """Matmuls in a jaxpr and all that is called from it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    if not hasattr(jaxpr, "eqns"):
        return 0
    inner = [leaf for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values()))]
    return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(map(count_matmuls, inner))


def test_policies_keep_what_they_say() -> None:
    """The number of matmuls in the gradient tells which were computed again."""
    counts = {}
    for remat in ("full", "dots", "attention"):
        graphdef, params = nnx.split(LAYERS)
        loss = lambda p, remat=remat, graphdef=graphdef: jnp.sum(  # noqa: E731
            run(nnx.merge(graphdef, p), scan=False, remat=remat)[0]
        )
        counts[remat] = count_matmuls(jax.make_jaxpr(jax.grad(loss))(params))
    assert counts["full"] > counts["dots"]
    assert counts["attention"] == counts["dots"]


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ModelError, match=r"model.remat_policy: unknown remat policy 'ful' \(did you mean 'full'"):
        run(LAYERS, scan=True, remat="ful")
