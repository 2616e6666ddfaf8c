"""`jnp.einsum` for a layer whose products are quantised; put into a module's `einsum_op`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.vgpu.quant.dot.dot import QuantizedDot
from apt_jax.vgpu.quant.errors import FormatError


@dataclass(frozen=True)
class QuantizedEinsum:
    """Two operands, each index in two of the three terms: x is brought to [..., K...] and w to [K..., N...]."""

    dot: QuantizedDot

    def __call__(self, equation: str, x: jax.Array, w: jax.Array, **kwargs: Any) -> jax.Array:
        """As `jnp.einsum(equation, x, w)`.

        Raises:
          FormatError: an equation with other terms, as of batched products.
        """
        left, right, out = self._terms(equation, x.ndim)
        contracted = [index for index in left if index in right]
        rows = [index for index in left if index not in right]
        columns = [index for index in right if index not in left]
        x = jnp.transpose(x, [left.index(index) for index in (*rows, *contracted)])
        w = jnp.transpose(w, [right.index(index) for index in (*contracted, *columns)])
        count = len(contracted)
        axes = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
        y = self.dot(x, w, (axes, ((), ())), **kwargs)
        return jnp.transpose(y, [(*rows, *columns).index(index) for index in out])

    def _terms(self, equation: str, ndim: int) -> tuple[str, str, str]:
        terms, arrow, out = equation.replace(" ", "").partition("->")
        operands = terms.split(",")
        if arrow and len(operands) == 2:
            # An ellipsis stands for axes that x has and w has not.
            free = [chr(code) for code in range(0x391, 0x391 + ndim)]
            missing = "".join(free[: ndim - len(operands[0].replace("...", ""))]) if "..." in operands[0] else ""
            left, out = operands[0].replace("...", missing), out.replace("...", missing)
            right = operands[1].replace("...", "")
            terms_ = (left, right, out)
            repeated = any(len(set(term)) != len(term) for term in terms_)
            each_twice = all(sum(index in term for term in terms_) == 2 for index in {*left, *right, *out})
            if not repeated and each_twice and set(left) & set(right):
                return terms_
        raise FormatError(
            f"quantised layer '{self.dot.name}': einsum '{equation}' is no product of a matrix; only equations with "
            "two operands and every index in two terms are quantised, so leave this layer out of the rules"
        )
