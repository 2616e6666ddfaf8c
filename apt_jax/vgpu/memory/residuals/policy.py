"""Which residuals are kept how: rules on their names, and a record of what they came to."""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.vgpu.memory.residuals.codec import ResidualCodec, nbytes
from apt_jax.vgpu.memory.residuals.views import Root
from apt_jax.vgpu.quant.errors import FormatError

# Sums and maxima of rows, on which much depends, stay as they are: what has
_SMALL = 32  # times fewer values than the layer's input, or
_SHORT = 16  # fewer along its last axis
_FLOATS = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Residuals:
    """How a group of layers keeps what its backward pass needs; put into a module's `residuals`. Hashable.

    Attributes:
      where: path of the module, as "layers"; its residuals are "layers/mlp_gate", "layers/input" …
      rules: (pattern, codec) in the order they are tried: the first whose regular expression matches the whole name
        decides; None as codec keeps the array as it is, and so does no rule at all.
    """

    where: str
    rules: tuple[tuple[str, ResidualCodec | None], ...]

    def __call__(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f(x, *rest)`, x being the activations, with the same values and fewer bits between its passes."""
        from apt_jax.vgpu.memory.residuals.transform import compressed

        return compressed(f, self)

    @property
    def stochastic(self) -> bool:
        """Whether random numbers may be drawn."""
        return any(codec is not None and codec.stochastic for _, codec in self.rules)

    def choose(self, roots: Sequence[Root], inputs: Sequence[Any]) -> list[ResidualCodec | None]:
        """A codec for each array.

        Args:
          inputs: shapes of the activations that the layer is given; what is far smaller stays as it is.

        Raises:
          FormatError: a codec that does not fit an array, with its name.
        """
        largest = max((math.prod(x.shape) for x in inputs), default=0)
        return [self._codec(root, largest) for root in roots]

    def _codec(self, root: Root, largest: int) -> ResidualCodec | None:
        aval: Any = root.var.aval
        shape = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        name = f"{self.where}/{root.name}"
        small = not shape.shape or shape.shape[-1] < _SHORT or math.prod(shape.shape) * _SMALL < largest
        if not root.active or small or shape.dtype.name not in _FLOATS:
            return None
        number = next((n for n, (pattern, _) in enumerate(self.rules) if re.fullmatch(pattern, name)), None)
        codec = None if number is None else self.rules[number][1]
        size = nbytes(shape)
        if codec is not None:
            try:
                size = nbytes(jax.eval_shape(lambda x: codec.encode(x, None), shape))
            except FormatError as error:
                raise FormatError(f"residual '{name}': {error}; or exempt it: ('{name}', None)") from error
        _note(Entry(name, shape.shape, jnp.dtype(shape.dtype).name, codec, number, nbytes(shape), size))
        return codec


@dataclass(frozen=True)
class Entry:
    """An array that is kept.

    Attributes:
      name: as rules see it.
      shape, dtype: as it was computed.
      codec: None: it is kept as it is.
      rule: number of the rule that decided; None: there was none.
      before, after: bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    codec: ResidualCodec | None
    rule: int | None
    before: int
    after: int


_record: contextvars.ContextVar[dict[Entry, None] | None] = contextvars.ContextVar("apt_jax_residuals", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[dict[Entry, None]]:
    """Collects, as keys in order, the entries of all that is traced within it."""
    found: dict[Entry, None] = {}
    token = _record.set(found)
    try:
        yield found
    finally:
        _record.reset(token)


def _note(entry: Entry) -> None:
    record = _record.get()
    if record is not None:
        record.setdefault(entry)
