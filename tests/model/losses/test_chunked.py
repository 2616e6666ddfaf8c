"""Chunked cross-entropy against a naive one, its memory, and its collectives."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from apt_jax.core.layout import MESH_AXES
from apt_jax.core.logical import AxisRules, use_rules
from apt_jax.model.losses import CrossEntropyOptions, chunked_cross_entropy

B, T, D, V = 4, 13, 8, 50
_rng = np.random.default_rng(0)
X = _rng.normal(size=(B, T, D)).astype(np.float32)
W = _rng.normal(size=(D, V)).astype(np.float32)
TARGETS = _rng.integers(0, V, (B, T)).astype(np.int32)
WEIGHTS = (_rng.random((B, T)) > 0.3).astype(np.float32)
OPTIONS = [
    CrossEntropyOptions(chunk=B * T),
    CrossEntropyOptions(chunk=20, z_loss=0.01),
    CrossEntropyOptions(chunk=1, label_smoothing=0.1),
    CrossEntropyOptions(chunk=24, z_loss=0.01, label_smoothing=0.1, softcap=3.0),
]


def naive(x: Any, w: Any, options: CrossEntropyOptions) -> jax.Array:
    logits = x @ w
    if options.softcap:
        logits = options.softcap * jnp.tanh(logits / options.softcap)
    lse = jax.nn.logsumexp(logits, axis=-1)
    target = (
        jax.nn.one_hot(TARGETS, V, dtype=x.dtype) * (1 - options.label_smoothing)
        + options.label_smoothing / V
    )
    losses = lse - jnp.sum(target * logits, axis=-1) + options.z_loss * lse**2
    return jnp.sum(losses * WEIGHTS)


def chunked(x: Any, w: Any, options: CrossEntropyOptions) -> jax.Array:
    return chunked_cross_entropy(x, w, TARGETS, WEIGHTS, options).loss


@pytest.mark.parametrize("options", OPTIONS)
def test_loss_and_gradients_equal_naive_float64(options: CrossEntropyOptions) -> None:
    with jax.enable_x64(True):
        grads = jax.value_and_grad(naive, (0, 1))(np.float64(X), np.float64(W), options)
        expected, (dx, dw) = jax.tree.map(np.asarray, grads)
    # A cotangent other than 1 must reach both gradients.
    value, grads = jax.jit(jax.value_and_grad(lambda *a: 3.0 * chunked(*a, options), (0, 1)))(X, W)
    np.testing.assert_allclose(value, 3 * expected, rtol=1e-5)
    np.testing.assert_allclose(grads[0], 3 * dx, atol=2e-5)
    np.testing.assert_allclose(grads[1], 3 * dw, atol=5e-5)


def test_metrics_count_weighted_tokens() -> None:
    sums = chunked_cross_entropy(X, W, TARGETS, WEIGHTS, OPTIONS[3])
    logits = 3.0 * np.tanh(X @ W / 3.0)
    lse = np.log(np.exp(logits).sum(-1))
    nll = lse - np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
    np.testing.assert_allclose(sums.nll, (nll * WEIGHTS).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.z, (lse**2 * WEIGHTS).sum(), rtol=1e-5)
    assert float(sums.correct) == ((logits.argmax(-1) == TARGETS) * WEIGHTS).sum()


def test_tokens_of_weight_zero_get_no_gradient() -> None:
    dx = jax.grad(chunked)(X, W, OPTIONS[1])
    np.testing.assert_array_equal(np.abs(dx).max(-1) > 0, WEIGHTS > 0)


def test_half_precision_keeps_the_dtype_of_its_gradients() -> None:
    for dtype in (jnp.bfloat16, jnp.float16):
        dx, dw = jax.grad(chunked, (0, 1))(X.astype(dtype), W.astype(dtype), OPTIONS[1])
        expected = jax.grad(chunked, (0, 1))(X, W, OPTIONS[1])
        assert dx.dtype == dw.dtype == dtype
        np.testing.assert_allclose(np.float32(dx), expected[0], atol=0.1)
        np.testing.assert_allclose(np.float32(dw), expected[1], atol=0.2)


def _sizes(jaxpr: Any) -> set[int]:
    """Sizes of every array in a jaxpr, inner ones included."""
    found = set()
    for eqn in jaxpr.eqns:
        found |= {int(np.prod(v.aval.shape)) for v in eqn.outvars if hasattr(v.aval, "shape")}
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= _sizes(inner)
    return found


def test_the_logits_of_all_tokens_never_exist() -> None:
    options = CrossEntropyOptions(chunk=B)  # one token per row at a time
    jaxpr = jax.make_jaxpr(jax.value_and_grad(lambda x, w: chunked(x, w, options), (0, 1)))(X, W)
    sizes = _sizes(jaxpr.jaxpr)
    assert B * V in sizes
    assert max(sizes) < B * T * V
    assert max(_sizes(jax.make_jaxpr(lambda x, w: naive(x, w, options))(X, W).jaxpr)) == B * T * V


def test_data_parallel_chunks_wait_for_no_collective() -> None:
    mesh = jax.make_mesh((1, 4, 1, 1, 1, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 6)
    rules = AxisRules(mesh, {"batch": ("data", "fsdp"), "seq": (), "embed": ("fsdp",), "vocab": ()})
    options = CrossEntropyOptions(chunk=2)

    def gradients(x: Any, w: Any) -> Any:
        with use_rules(rules):
            return jax.value_and_grad(lambda x, w: chunked(x, w, options), (0, 1))(x, w)

    rows = NamedSharding(mesh, PartitionSpec("data"))
    compiled = jax.jit(gradients, in_shardings=(rows, None)).lower(X, W).compile()
    value, (dx, dw) = compiled(jax.device_put(X, rows), W)
    expected, (dx_expected, dw_expected) = jax.value_and_grad(chunked, (0, 1))(X, W, options)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(dx, dx_expected, atol=1e-5)
    np.testing.assert_allclose(dw, dw_expected, atol=1e-5)

    hlo = compiled.as_text()
    assert hlo is not None
    assert "all-reduce" in hlo  # the gradient is summed over devices, after the loop
    for body in re.findall(r"body=%?([\w.\-]+)", hlo):
        text = hlo[hlo.index(f"%{body} (") :]
        assert not re.search(r"all-(reduce|gather|to-all)", text[: text.index("\n}")]), body
