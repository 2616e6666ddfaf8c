"""Attention kernels against each other and against a naive one in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.errors import ModelError
from apt_jax.model.api import AttentionMask, make_mask
from apt_jax.model.layers import kernels

H = 8


def qkv(T: int, N: int, K: int, seed: int = 0, batch: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shapes = ((batch, T, N, H), (batch, T, K, H), (batch, T, K, H))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def naive(q: Any, k: Any, v: Any, allowed: np.ndarray, scale: float) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    logits = np.einsum("btnh,bsnh->bnts", q, k) * scale
    logits = np.where(allowed[:, None], logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", p / p.sum(-1, keepdims=True), v)


def documents(T: int, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """positions, segment ids [2, T] of packed documents; the last token of the row is padding."""
    positions, segments = np.arange(T), np.zeros(T, np.int32)
    start = 0
    for i, length in enumerate(lengths):
        stop = min(start + length, T)
        positions[start:stop], segments[start:stop] = np.arange(stop - start), i + 1
        start = stop
    positions[start:] = np.arange(T - start)
    return np.tile(positions, (2, 1)).astype(np.int32), np.tile(segments, (2, 1))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 4)
    monkeypatch.setattr(kernels, "_MAX_PREFIXES", 2)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("lengths", [None, [5, 6, 4]])
def test_reference_equals_naive_float64(lengths: list[int] | None, window: int | None) -> None:
    q, k, v = qkv(T=16, N=6, K=2)
    arrays = documents(16, lengths) if lengths else (None, None)
    mask = make_mask((2, 16), *arrays, window)
    i = np.arange(16)
    allowed = (i[None] <= i[:, None]) & (i[:, None] - i[None] < (window or 99))
    if lengths:
        segments = arrays[1]
        assert segments is not None
        allowed = allowed & (segments[:, :, None] == segments[:, None, :])
    expected = naive(q, k, v, np.broadcast_to(allowed, (2, 16, 16)), 0.3)
    np.testing.assert_allclose(kernels.reference(q, k, v, mask, scale=0.3), expected, atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("lengths", [None, [3, 9, 8]])
@pytest.mark.parametrize("T", [1, 3, 8, 22])  # less than a chunk, whole ones, and a remainder
def test_chunked_equals_reference(T: int, lengths: list[int] | None, window: int | None) -> None:
    arrays = documents(T, lengths) if lengths else (None, None)
    mask = make_mask((2, T), *arrays, window)
    q, k, v = qkv(T, 4, 2)

    @jax.jit
    def both() -> tuple[jax.Array, jax.Array]:
        return tuple(f(q, k, v, mask, scale=0.3) for f in (kernels.chunked, kernels.reference))

    np.testing.assert_allclose(*both(), atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_chunked_gradient_equals_reference() -> None:
    mask = make_mask((2, 22), *documents(22, [9, 9]), 6)
    args = qkv(22, 4, 2)

    def gradients(kernel: Any) -> Any:
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(kernel(*a, mask, scale=0.3))), (0, 1, 2)))(*args)

    for a, b in zip(gradients(kernels.chunked), gradients(kernels.reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_chunked_never_holds_all_logits_and_reads_no_future_key() -> None:
    q, k, v = qkv(T=16, N=2, K=2)
    mask = make_mask((2, 16), None, None, None)
    jaxpr = str(jax.make_jaxpr(lambda *a: kernels.chunked(*a, mask, scale=1.0))(q, k, v))
    assert "2,2,1,4,8]" in jaxpr  # B K G, 4 queries, the 8 keys of the first block
    assert "16,16]" not in jaxpr


@pytest.mark.usefixtures("small_chunks")
def test_chunked_serves_a_cache_longer_than_the_queries() -> None:
    q, k, v = qkv(T=10, N=4, K=2)
    positions = np.arange(10, dtype=np.int32)[None].repeat(2, 0)
    segments = np.ones((2, 10), np.int32)
    empty = np.where(positions < 8, positions, -1)  # slots 8 and 9 are not filled yet
    mask = AttentionMask(positions[:, 3:8], empty, segments[:, 3:8], segments)
    whole = kernels.reference(q, k, v, make_mask((2, 10), None, None, None), scale=0.3)
    out = kernels.chunked(q[:, 3:8], k, v, mask, scale=0.3)
    np.testing.assert_allclose(out, whole[:, 3:8], atol=1e-5)


def test_a_query_without_keys_stays_finite() -> None:
    q, k, v = qkv(T=3, N=2, K=2)
    ones = np.ones((2, 3), np.int32)
    mask = AttentionMask(ones, -ones, ones, ones)
    assert np.isfinite(kernels.reference(q, k, v, mask, scale=1.0)).all()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "packed", "message"),
    [
        (jnp.float32, 64, False, "needs bf16 or fp16, not float32"),
        (jnp.bfloat16, 20, False, "a multiple of 8 and at most 256, not 20"),
        (jnp.bfloat16, 64, True, "cannot keep packed documents apart"),
    ],
)
def test_cudnn_refuses_what_it_cannot_honour(dtype: Any, head_dim: int, packed: bool, message: str) -> None:
    x = jnp.zeros((1, 4, 2, head_dim), dtype)
    segments = jnp.ones((1, 4), jnp.int32) if packed else None
    with pytest.raises(ModelError, match=message):
        kernels.cudnn(x, x, x, make_mask((1, 4), None, segments, None), scale=1.0)
    with pytest.raises(ModelError, match=message):
        kernels.select_kernel("cudnn", "gpu", dtype=jnp.dtype(dtype), head_dim=head_dim, packed=packed)


def test_auto_chooses_by_platform_and_says_why() -> None:
    def choose(platform: str, packed: bool = False, dtype: str = "bfloat16") -> tuple[str, str]:
        return kernels.select_kernel("auto", platform, dtype=jnp.dtype(dtype), head_dim=64, packed=packed)

    assert choose("gpu") == ("cudnn", "flash attention")
    assert choose("gpu", packed=True) == ("chunked", "cudnn cannot keep packed documents apart")
    assert choose("gpu", dtype="float32") == ("chunked", "cudnn needs bf16 or fp16, not float32")
    assert choose("tpu") == ("chunked", "plain JAX on tpu")


def test_explicit_kernels_are_checked() -> None:
    def choose(name: str, platform: str) -> tuple[str, str]:
        return kernels.select_kernel(name, platform, dtype=jnp.dtype("bfloat16"), head_dim=64, packed=False)

    assert choose("reference", "cpu")[0] == "reference"
    with pytest.raises(ModelError, match="'cudnn' needs an NVIDIA GPU, not cpu"):
        choose("cudnn", "cpu")
    with pytest.raises(ModelError, match=r"unknown kernel 'chunk' \(did you mean 'chunked'"):
        choose("chunk", "cpu")
