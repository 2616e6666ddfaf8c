"""A matrix multiplication with a weight: the one place through which every projection goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.model.layers import matmul

DotGeneral = Callable[..., jax.Array]


class Dense(nnx.Module):
    """y = x · kernel (+ bias), in compute dtype.

    Attributes:
      kernel: float32 [in, out]; stored once, cast when used. Its value may be anything with `astype`, as a quantised
        weight that is decoded there.
      bias: float32 [out], or None.
      dot_general: called as `jax.lax.dot_general(x, w, dimension_numbers)`; replace it (by a hashable
        callable) to quantise this layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None],
        std: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        use_bias: bool = False,
    ) -> None:
        init = nnx.initializers.normal(std) if std else nnx.initializers.zeros_init()
        kernel = init(rngs.params(), (in_features, out_features), jnp.float32)
        self.kernel = nnx.Param(kernel, logical_axes=axes)
        bias = jnp.zeros((out_features,), jnp.float32)
        self.bias = nnx.Param(bias, logical_axes=axes[1:]) if use_bias else None
        self.dtype = dtype
        self.dot_general: DotGeneral = matmul.dot_general

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., in] -> [..., out]."""
        contract: Any = (((x.ndim - 1,), (0,)), ((), ()))
        y = self.dot_general(x.astype(self.dtype), self.kernel[...].astype(self.dtype), contract)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)
