"""Every method gives what the reference kernel gives on one device: outputs, gradients, any mask, any mesh."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ConfigError
from apt_jax.core.logical import use_rules
from apt_jax.model.api import AttentionMask, make_mask
from apt_jax.model.architectures.llama import llama
from apt_jax.model.layers import kernels
from apt_jax.model.layers.attend import attend
from apt_jax.trainops.distributed.context import context_attention
from apt_jax.trainops.distributed.context.ulysses import kv_copies
from tests.trainops.distributed.context.cases import (
    METHODS,
    SCALE,
    Case,
    H,
    answer,
    expected,
    inverse_order,
    order_of,
    outputs,
    rules_for,
    small_tiles,
)

reference = cache(expected)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / np.abs(b).max())


def agree(given: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    errors = dict(zip(("o", "dq", "dk", "dv"), map(relative, given, wanted), strict=True))
    assert max(errors.values()) <= tolerance, errors


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)


MESHES = [
    {"context": 2},
    {"context": 4},
    {"context": 8},
    {"context": 4, "tensor": 2},
    {"context": 2, "data": 2, "tensor": 2},
    {"context": 2, "fsdp": 2, "data": 2},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
def test_packed_documents_with_padding(method: str, sizes: dict[str, int]) -> None:
    case = Case(batch=4) if sizes.get("fsdp") else Case()
    agree(answer(method, case, rules_for(method, **sizes)), reference(case))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "case",
    [
        Case(window=7),
        Case(window=2, K=8),
        Case(lengths=None),
        Case(lengths=None, window=20),
        Case(lengths=(), K=1, N=4),  # nothing but padding
        Case(batch=1, T=56),  # pieces that tiles do not divide
    ],
    ids=["window", "window2-mha", "whole", "whole-window", "padding-mqa", "odd"],
)
def test_masks_and_heads(method: str, case: Case) -> None:
    agree(answer(method, case, rules_for(method, context=4)), reference(case))


@pytest.mark.parametrize("method", METHODS)
def test_an_unpacked_mask_still_says_where_tokens_are(method: str) -> None:
    case = Case(lengths=None)
    agree(answer(method, case, rules_for(method, context=4), packed=False), reference(case))


@pytest.mark.parametrize("method", METHODS)
def test_mask_arrays_of_one_row_serve_all_rows(method: str) -> None:
    case = Case(batch=2, lengths=None)
    rules, order = rules_for(method, context=2), order_of(method, case, 2)
    q, k, v, _ = (x[:, order] for x in case.arrays())
    positions, segments = (x[:1, order] for x in case.tags())
    with use_rules(rules):
        mask = AttentionMask(positions, positions, segments, segments)
        o = jax.jit(lambda *x: attend(kernels.chunked, *x, mask, scale=SCALE))(q, k, v)
    assert relative(np.asarray(o)[:, inverse_order(order)], reference(case)[0]) <= 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_bf16_is_close_to_float32(method: str) -> None:
    case = Case(dtype=jnp.bfloat16, window=30)
    given = answer(method, case, rules_for(method, context=4))
    assert all(x.dtype == jnp.bfloat16 for x in given)
    agree(given, reference(case), tolerance=2e-2)


@pytest.mark.parametrize("method", METHODS)
def test_inside_a_shard_map_over_pipe(method: str) -> None:
    case = Case()
    rules, order = rules_for(method, pipe=2, context=2, tensor=2), order_of(method, case, 2)
    run = outputs(lambda *x, **scale: attend(kernels.chunked, *x, **scale), case, True)

    def stage(*args: jax.Array) -> tuple[jax.Array, ...]:  # the second stage sees its values doubled
        q, k, v, *rest = args
        return tuple(x[None] for x in run(q, k, v * (1.0 + jax.lax.axis_index("pipe")), *rest))

    with use_rules(rules):
        stages = jax.shard_map(
            stage, mesh=rules.mesh, in_specs=P(), out_specs=P("pipe"), axis_names={"pipe"}, check_vma=False
        )
        results = jax.jit(stages)(*(x[:, order] for x in (*case.arrays(), *case.tags())))
    o, dq, dk, dv = (np.asarray(x)[:, :, inverse_order(order)] for x in results)
    wanted = reference(case)
    agree((o[0], dq[0], dk[0], dv[0]), wanted)
    agree((o[1] / 2, dq[1] / 2, dk[1] / 2, dv[1]), wanted)


@pytest.mark.parametrize("method", ["allgather", "ring"])
def test_a_query_without_keys_is_finite_and_has_no_gradient(method: str) -> None:
    case = Case(T=16, lengths=None)
    rules = rules_for(method, context=2)
    q, k, v, do = case.arrays()
    positions, ones = np.zeros((2, 16), np.int32), np.ones((2, 16), np.int32)
    blind = order_of(method, case, 2) % 3 == 0
    mask = AttentionMask(positions, positions, np.where(blind, 2, ones), ones)  # segment 2 has no keys

    @jax.jit
    def run(q: Any, k: Any, v: Any) -> Any:
        o, vjp = jax.vjp(lambda *x: attend(kernels.chunked, *x, mask, scale=SCALE), q, k, v)
        only_blind = jnp.where(blind[:, None, None], do, 0)
        return o, vjp(do), vjp(only_blind)

    with use_rules(rules):
        o, (dq, *_), gradients = run(q, k, v)
    assert np.isfinite(o).all() and (o[:, blind] == 0).all() and (dq[:, blind] == 0).all()
    assert (np.abs(o[:, ~blind]).max(axis=(0, 2, 3)) > 0).all() and np.isfinite(dq).all()
    assert all((x == 0).all() for x in gradients)


@pytest.mark.parametrize("method", ["allgather", "ring"])
def test_keys_that_no_query_of_a_tile_can_see_are_not_read(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, queries=4, keys=4)
    case = Case(T=64, lengths=None, window=4)
    rules, order = rules_for(method, context=4), order_of(method, case, 4)
    q, k, v, _ = case.arrays()
    v[:, 40:48] = np.nan  # masking by a weight of 0 would still give NaN
    with use_rules(rules):
        mask = make_mask((2, 64), *(x[:, order] for x in case.tags()), case.window)
        run = jax.jit(lambda *x: attend(kernels.chunked, *x, mask, scale=SCALE))
        o = np.asarray(run(*(x[:, order] for x in (q, k, v))))[:, inverse_order(order)]
    tainted = np.isnan(o).any(axis=(0, 2, 3))
    assert list(np.flatnonzero(tainted)) == list(range(40, 52))  # to the end of the tile that the window reaches


def test_other_kernels_serve_ulysses_and_whole_rows() -> None:
    case = Case()
    agree(answer("ulysses", case, rules_for("ulysses", context=4), kernel=kernels.reference), reference(case))
    calls = []

    def kernel(*args: Any, **kwargs: Any) -> jax.Array:
        calls.append(args[0].shape)
        return kernels.reference(*args, **kwargs)

    q, k, v, _ = case.arrays()
    for rules in (None, rules_for("ring", tensor=2)):
        with use_rules(rules):
            o = context_attention("ring")(kernel, q, k, v, make_mask((2, 48), *case.tags(), None), scale=SCALE)
            assert relative(o, reference(case)[0]) <= 1e-5
    assert calls == [(2, 48, 8, H)] * 2


def test_what_cannot_be_cut_is_named() -> None:
    def error(method: str, case: Case, **sizes: int) -> str:
        rules = rules_for(method, **sizes)
        q, k, v, _ = case.arrays()
        with use_rules(rules), pytest.raises(ConfigError) as info:
            attend(kernels.chunked, q, k, v, make_mask((2, case.T), None, None, None), scale=SCALE)
        return str(info.value)

    assert "data.sequence_length: 20 tokens cannot be cut into 8 equal pieces" in error("ring", Case(20), context=4)
    assert "20 tokens cannot be cut into 8 equal pieces" in error("ulysses", Case(20), context=8)
    assert error("ulysses", Case(N=12, K=6), context=4, tensor=2) == (
        "training.distributed.context_parallel: ulysses cannot share 6 heads (model.num_attention_heads ÷ "
        "tensor_parallel) among 4 devices; use a divisor of 6, or context_method=ring"
    )
    with pytest.raises(ConfigError, match=r"context_method: unknown method 'rings' \(did you mean 'ring'\?\)"):
        context_attention("rings")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "shards", "copies"), [(8, 8, 4, 1), (8, 4, 8, 2), (24, 6, 4, 2), (8, 1, 8, 8), (6, 6, 3, 1)]
)
def test_keys_are_copied_no_more_than_needed(heads: int, kv_heads: int, shards: int, copies: int) -> None:
    assert kv_copies(heads, kv_heads, shards) == copies
    assert kv_heads * copies % shards == 0 and heads % (kv_heads * copies) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_runs_on_a_cut_sequence(method: str) -> None:
    config = ModelConfig(
        architecture="llama",
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
    )
    model = llama(config, 32, nnx.Rngs(0), dtype=jnp.float32)
    case = Case()
    positions, segments = case.tags()
    tokens = np.random.default_rng(0).integers(0, 32, (2, 48))
    graph, params = nnx.split(model)

    def hidden(params: Any, tokens: Any, positions: Any, segments: Any) -> jax.Array:
        return nnx.merge(graph, params).hidden(tokens, positions_BT=positions, segment_ids_BT=segments).x_BTD

    whole = jax.jit(hidden)(params, tokens, positions, segments)
    rules, order = rules_for(method, context=2, data=2), order_of(method, case, 2)
    with use_rules(rules):
        # A function of its own: jit would reuse the trace made without rules.
        cut = jax.jit(lambda *x: hidden(*x))(params, *(x[:, order] for x in (tokens, positions, segments)))
    np.testing.assert_allclose(cut[:, inverse_order(order)], whole, atol=1e-5)
