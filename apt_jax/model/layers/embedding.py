"""Token embedding, and the output head when its table is shared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.core.logical import mesh_axes, per_device, rules_in_force


class Embedding(nnx.Module):
    """A table float32 [V, D]; rows are gathered and then cast, so that the whole table is not."""

    def __init__(self, vocab_size: int, width: int, *, std: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        table = nnx.initializers.normal(std)(rngs.params(), (vocab_size, width), jnp.float32)
        self.table = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.dtype = dtype

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        table, rules = self.table[...], rules_in_force()
        if rules is None or rules.mesh.size == 1:
            return table[tokens_BT].astype(self.dtype)
        vocab_axes, width_axes = mesh_axes(rules, ("vocab", "embed"))
        row_axes, _ = mesh_axes(rules, ("batch", "seq"))

        # Written out, because XLA would bring the whole table to every device, and inside a pipeline stage its
        # partitioner does not survive the attempt.
        def lookup(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
            for axis in width_axes:
                if axis in row_axes:
                    tokens_BT = jax.lax.all_gather(tokens_BT, axis, axis=0, tiled=True)
            x_BTD = _rows_held(table_VD, tokens_BT, vocab_axes).astype(self.dtype)
            for axis in reversed(width_axes):
                if axis in row_axes:  # everyone's tokens, some columns -> own tokens, all columns
                    x_BTD = jax.lax.all_to_all(x_BTD, axis, split_axis=0, concat_axis=2, tiled=True)
                else:
                    x_BTD = jax.lax.all_gather(x_BTD, axis, axis=2, tiled=True)
            return x_BTD[None]

        # The sum over pieces of the vocabulary stays outside, where its gradient is known to be the same for all.
        out_axes = ("vocab", "batch", "seq", "embed")
        parts_PBTD = per_device(lookup, rules, (("vocab", "embed"), ("batch", "seq")), out_axes)(table, tokens_BT)
        return jnp.sum(parts_PBTD, axis=0)


def _rows_held(table_VD: jax.Array, tokens_BT: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Rows of the tokens that this device's piece of the table holds; zero for others' tokens."""
    if not axes:
        return table_VD[tokens_BT]
    rows = table_VD.shape[0]
    place = tokens_BT - jax.lax.axis_index(axes) * rows
    held = (place >= 0) & (place < rows)
    return jnp.where(held[..., None], table_VD[jnp.where(held, place, 0)], 0.0)
