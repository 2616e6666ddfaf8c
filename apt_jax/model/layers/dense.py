"""A matrix multiplication with a weight: the one place through which every projection goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.model.layers import matmul

DotGeneral = Callable[..., jax.Array]
_cast_again: ContextVar[bool] = ContextVar("apt_jax_cast_again", default=False)


@contextmanager
def cast_again(on: bool) -> Iterator[None]:
    """Within it, kernels are cast to compute dtype again in the backward pass, which else keeps the forward's copies.

    In a scan over layers those are a copy of all kernels.
    """
    token = _cast_again.set(on)
    try:
        yield
    finally:
        _cast_again.reset(token)


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

        def multiply(x: jax.Array, kernel: Any) -> jax.Array:
            return self.dot_general(x, kernel.astype(self.dtype), contract)

        if _cast_again.get():
            multiply = jax.checkpoint(multiply, prevent_cse=False)
        y = multiply(x.astype(self.dtype), self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)
