"""What of an optimizer's state is compressed, and how large it is then; without jax."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCK = 128  # numbers along the last axis that share a scale
SMALLEST = 4096  # numbers of a matrix whose moments are worth compressing


def is_compressed(shape: Sequence[int], table: bool) -> bool:
    """Whether a parameter's moments are compressed.

    Args:
      shape: of the parameter. One matrix of a stack decides for all, so that a layer alone has the same state.
      table: it is a hidden matrix or an embedding, not a norm, a bias or a scalar.
    """
    return table and math.prod(shape[-2:]) >= SMALLEST


def scale_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the scales of an array with at least one axis: one for each block, the last of a row may be short."""
    return (*shape[:-1], math.ceil(shape[-1] / BLOCK))
