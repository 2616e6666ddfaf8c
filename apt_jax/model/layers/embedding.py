"""Token embedding, and the output head when its table is shared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class Embedding(nnx.Module):
    """A table float32 [V, D]; rows are gathered and then cast, so that the whole table is not."""

    def __init__(self, vocab_size: int, width: int, *, std: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        table = nnx.initializers.normal(std)(rngs.params(), (vocab_size, width), jnp.float32)
        self.table = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.dtype = dtype

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return self.table[...][tokens_BT].astype(self.dtype)
