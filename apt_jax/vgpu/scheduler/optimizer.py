"""Bytes that optimizers keep, parameter by parameter: exactly those of the real state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from apt_jax.vgpu.memory.states.sizes import is_compressed, scale_shape
from apt_jax.vgpu.scheduler.mesh import Mesh
from apt_jax.vgpu.scheduler.shapes import Tensor

_FLOAT = 4


@dataclass(frozen=True)
class StateSize:
    """What an optimizer keeps.

    Attributes:
      matrix: bytes per number of a hidden matrix.
      other: of any other parameter.
      counters: bytes of counters and coefficients, whatever the model.
      codes: bytes per number where moments are compressed; None: nowhere.
      scaled: of those moments, how many have a float32 scale per block.
    """

    matrix: int
    other: int
    counters: int
    codes: int | None = None
    scaled: int = 0

    def bytes_of(self, tensor: Tensor, mesh: Mesh) -> int:
        """Bytes on one device for a parameter."""
        numbers = mesh.share(tensor.shape, tensor.axes)
        if self.codes is None or not is_compressed(tensor.shape, tensor.hidden_matrix or "vocab" in tensor.axes):
            return numbers * (self.matrix if tensor.hidden_matrix else self.other)
        scales = scale_shape(tensor.shape)
        return numbers * self.codes + self.scaled * _FLOAT * math.prod(scales) // mesh.pieces(scales, tensor.axes)


OPTIMIZERS = {
    "adamw": StateSize(8, 8, 8),
    "adamw8bit": StateSize(8, 8, 8, codes=2, scaled=2),
    "adamw_bf16": StateSize(8, 8, 8, codes=4),
    "muon": StateSize(4, 8, 28),
    "sgd": StateSize(4, 4, 4),
}
