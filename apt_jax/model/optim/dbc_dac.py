"""DBC-DAC: dimension-balanced compression with dimension-accompanying compensation, as an optax transform.

A gradient matrix G [m, n] is balanced by its row norms, projected onto a random low-rank range, and
what the projection lost is projected once more and added back in part:

    N = D⁻¹ G,  D = diag(‖G_i‖)            every row counts alike
    P = Q Qᵀ N,  Q = qr(N Ω)                range finder of rank r (Halko et al., arXiv:0909.4061)
    W = κ Q' Q'ᵀ (N − P)                    rank r/2, κ = 0.1
    F = D (P + W),  G' = (1 − λ) G + λ F ‖G‖/‖F‖

Both projections are orthogonal, so no singular value is applied twice and the norm is kept.
λ = 0 is the identity; a filter of rank share ρ keeps about ρ of the energy of white noise, which is
why the default blend is small and the transform is off unless asked for.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

_COMPENSATION = 0.1  # κ
_FLOOR = 1e-12  # of row norms: a zero row stays zero


@struct.dataclass
class DbcDacState:
    """Number of updates so far: the random range of each step is folded from it."""

    count: jax.Array


def dbc_dac(*, rank: float, blend: float, mask: Any, seed: int) -> optax.GradientTransformation:
    """Builds the transform.

    Args:
      rank: share of min(m, n) kept by the first projection, in (0, 1].
      blend: λ in [0, 1].
      mask: boolean tree; True leaves are [m, n] or stacked [L, m, n] matrices and are filtered.
      seed: seeds the random ranges.
    """

    def init(params: optax.Params) -> Any:
        del params
        return DbcDacState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        del params
        key = jax.random.fold_in(jax.random.key(seed), state.count)
        leaves, structure = jax.tree.flatten(updates)
        chosen = structure.flatten_up_to(mask)
        filtered = [
            _filter_stacked(g, jax.random.fold_in(key, i), rank, blend) if use else g
            for i, (g, use) in enumerate(zip(leaves, chosen, strict=True))
        ]
        return jax.tree.unflatten(structure, filtered), DbcDacState(state.count + 1)

    return optax.GradientTransformation(init, update)


def _filter_stacked(g: jax.Array, key: jax.Array, rank: float, blend: float) -> jax.Array:
    matrices = g.reshape((-1, *g.shape[-2:]))
    keys = jax.random.split(key, matrices.shape[0])
    return jax.vmap(lambda m, k: _filter(m, k, rank, blend))(matrices, keys).reshape(g.shape)


def _filter(g_MN: jax.Array, key: jax.Array, rank: float, blend: float) -> jax.Array:
    r = max(1, int(rank * min(g_MN.shape)))
    first, second = jax.random.split(key)
    d_M1 = jnp.linalg.norm(g_MN, axis=1, keepdims=True)
    n_MN = g_MN / jnp.maximum(d_M1, _FLOOR)
    p_MN = _project(n_MN, r, first)
    w_MN = _COMPENSATION * _project(n_MN - p_MN, max(1, r // 2), second)
    f_MN = d_M1 * (p_MN + w_MN)
    f_MN *= jnp.linalg.norm(g_MN) / jnp.maximum(jnp.linalg.norm(f_MN), _FLOOR)
    return (1 - blend) * g_MN + blend * f_MN


def _project(a_MN: jax.Array, r: int, key: jax.Array) -> jax.Array:
    q_MR, _ = jnp.linalg.qr(a_MN @ jax.random.normal(key, (a_MN.shape[1], r), a_MN.dtype))
    return q_MR @ (q_MR.T @ a_MN)
