"""What of an optimizer's state is compressed, and how large it is then; without jax."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCK = 128  # numbers along the last axis that share a scale
SMALLEST = 4096  # numbers of a parameter whose moments are worth compressing


def is_compressed(size: int, table: bool) -> bool:
    """Whether a parameter's moments are compressed.

    Args:
      size: numbers in it.
      table: it is a hidden matrix or an embedding, not a norm, a bias or a scalar.
    """
    return table and size >= SMALLEST


def scale_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the scales of an array with at least one axis: one for each block, the last of a row may be short."""
    return (*shape[:-1], math.ceil(shape[-1] / BLOCK))
