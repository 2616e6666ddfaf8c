"""Random attention problems, and how a context-parallel method and the reference kernel answer them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.core.layout import MESH_AXES
from apt_jax.core.logical import AxisRules, use_rules
from apt_jax.model.api import make_mask
from apt_jax.model.layers import kernels
from apt_jax.trainops.distributed.context import (
    METHODS,
    allgather,
    context_attention,
    inverse_order,
    needs_zigzag,
    ring,
    shard,
    zigzag_order,
)
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.rules import make_rules

__all__ = ["METHODS", "Case", "answer", "expected", "order_of", "rules_for", "small_tiles"]

H, SCALE = 8, 0.3


def small_tiles(monkeypatch: Any, queries: int = 3, keys: int = 5) -> None:
    """Tiles that no piece of the tests is a multiple of."""
    monkeypatch.setattr(shard, "QUERIES", queries)
    for module in (ring, allgather):
        monkeypatch.setattr(module, "KEYS", keys)


def rules_for(method: str, **sizes: int) -> AxisRules:
    mesh = make_mesh({axis: sizes.get(axis, 1) for axis in MESH_AXES})
    return replace(make_rules(mesh, {}), attend=context_attention(method))


@dataclass(frozen=True)
class Case:
    """T tokens in natural order; `lengths` of the packed documents, the rest of the row is padding."""

    T: int = 48
    N: int = 8
    K: int = 4
    batch: int = 2
    lengths: tuple[int, ...] | None = (17, 5, 22)
    window: int | None = None
    dtype: Any = jnp.float32

    def arrays(self) -> tuple[np.ndarray, ...]:
        """q, k, v, do."""
        rng = np.random.default_rng(0)
        heads = self.N, self.K, self.K, self.N
        return tuple(rng.normal(size=(self.batch, self.T, n, H)).astype(self.dtype) for n in heads)

    def tags(self) -> tuple[np.ndarray, np.ndarray]:
        """positions, segments; the rows differ."""
        rows = []
        for row in range(self.batch):
            lengths = self.lengths[row:] if self.lengths else (self.T,)
            sizes = [*lengths, self.T - sum(lengths)]
            ids = [*range(1, len(sizes)), 0]
            rows.append((np.concatenate([np.arange(n) for n in sizes]), np.repeat(ids, sizes)))
        positions, segments = (np.stack(x).astype(np.int32) for x in zip(*rows, strict=True))
        return positions, segments


def order_of(method: str, case: Case, shards: int) -> np.ndarray:
    return zigzag_order(case.T, shards) if needs_zigzag(method) else np.arange(case.T)


def outputs(attend: Callable[..., jax.Array], case: Case, packed: bool) -> Callable[..., tuple[jax.Array, ...]]:
    """(q, k, v, do, positions, segments) -> (o, dq, dk, dv)."""

    def run(q: Any, k: Any, v: Any, do: Any, positions: Any, segments: Any) -> tuple[jax.Array, ...]:
        mask = make_mask((case.batch, case.T), positions, segments, case.window).replace(packed=packed)
        o, vjp = jax.vjp(lambda *x: attend(*x, mask, scale=SCALE), q, k, v)
        return o, *vjp(do)

    return run


def expected(case: Case) -> tuple[np.ndarray, ...]:
    """(o, dq, dk, dv) of the reference kernel on one device, in float32."""
    arrays = (jnp.asarray(x, jnp.float32) for x in case.arrays())
    return tuple(map(np.asarray, jax.jit(outputs(kernels.reference, case, True))(*arrays, *case.tags())))


def answer(
    method: str, case: Case, rules: AxisRules, *, packed: bool = True, kernel: Any = kernels.chunked
) -> tuple[np.ndarray, ...]:
    """(o, dq, dk, dv) of a method on a mesh, put back into natural order."""
    order = order_of(method, case, rules.mesh.shape["context"])
    attend = rules.attend
    assert attend is not None
    with use_rules(rules):
        run = jax.jit(outputs(lambda *x, **scale: attend(kernel, *x, **scale), case, packed))
        results = run(*(x[:, order] for x in (*case.arrays(), *case.tags())))
    return tuple(np.asarray(x)[:, inverse_order(order)] for x in results)
