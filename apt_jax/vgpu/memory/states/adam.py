"""Adam whose moments are stored by codecs, one parameter after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from apt_jax.vgpu.memory.states.codecs import FLOAT32, Codec, Stored
from apt_jax.vgpu.memory.states.sizes import is_compressed

Tree = Any


class CompressedAdamState(NamedTuple):
    """Moments as they are stored.

    Every tree has the parameters' structure, so that a slot is found, placed and saved by its parameter's path.

    Attributes:
      count: int32 [], updates so far.
      mu, nu: codes in the parameters' shapes.
      mu_scale, nu_scale: scales [..., blocks]; `optax.MaskedNode` where there are none.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # as in optax's states
    mu: Tree
    mu_scale: Tree
    nu: Tree
    nu_scale: Tree


def scale_by_compressed_adam(
    b1: float, b2: float, eps: float, *, mu: Codec, nu: Codec, tables: Tree
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with stored moments.

    Moments are decoded, updated and encoded in float32 parameter by parameter; the update comes from the moments
    before they are encoded. Parameters that are not compressed (see `is_compressed`) have float32 moments and get
    the very updates of optax.

    Args:
      b1, b2, eps: Adam's.
      mu, nu: how first and second moments are stored.
      tables: boolean tree with the parameters' structure: matrices and embeddings.
    """

    def codecs(x: jax.Array, table: bool) -> tuple[Codec, Codec]:
        return (mu, nu) if is_compressed(x.shape, table) else (FLOAT32, FLOAT32)

    def init(params: optax.Params) -> Any:
        leaves, structure = jax.tree.flatten(params)
        count = jnp.zeros([], jnp.int32)
        stored = []
        for x, table in zip(leaves, structure.flatten_up_to(tables), strict=True):
            stored.append(tuple(_nothing(codec, x.shape) for codec in codecs(x, table)))
        return _state(count, stored, structure)

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        del params
        count = jnp.asarray(optax.safe_increment(state.count))
        leaves, structure = jax.tree.flatten(updates)
        slots = [structure.flatten_up_to(tree) for tree in (tables, *state[1:])]
        scaled, stored = [], []
        for g, table, *kept in zip(leaves, *slots, strict=True):
            first, second = codecs(g, table)
            m = (1 - b1) * g + b1 * first.decode(_stored(*kept[:2]))
            v = (1 - b2) * g**2 + b2 * second.decode(_stored(*kept[2:]))
            scaled.append((m / (1 - b1**count)) / (jnp.sqrt(v / (1 - b2**count)) + eps))
            stored.append((first.encode(m, count), second.encode(v, count)))
        return structure.unflatten(scaled), _state(count, stored, structure)

    return optax.GradientTransformation(init, update)


def _nothing(codec: Codec, shape: tuple[int, ...]) -> Stored:
    """A stored moment of zeros, made of zeros: XLA would compute `encode(zeros)` while it compiles, and take long."""
    shapes = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct(shape, jnp.float32), jnp.int32(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _stored(codes: jax.Array, scales: Any) -> Stored:
    return Stored(codes, None if isinstance(scales, optax.MaskedNode) else scales)


def _state(count: jax.Array, stored: list[tuple[Stored, Stored]], structure: Any) -> CompressedAdamState:
    def tree(moment: int, name: str) -> Tree:
        values = [getattr(pair[moment], name) for pair in stored]
        return structure.unflatten([optax.MaskedNode() if x is None else x for x in values])

    return CompressedAdamState(count, tree(0, "codes"), tree(0, "scales"), tree(1, "codes"), tree(1, "scales"))
