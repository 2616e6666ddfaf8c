"""A layout as the closed form sees it: devices per axis, and what they leave of an array on one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apt_jax.core.layout import DEFAULT_RULES, MESH_AXES, Layout


@dataclass(frozen=True)
class Mesh:
    """Devices per axis, and how the strategy uses them.

    Attributes:
      pipe, data, fsdp, expert, context, tensor: devices.
      zero_stage: what is cut along `fsdp`: 1 the optimizer's state, 2 gradients as well, 3 parameters as well.
      sequence_parallel: the stream between blocks is cut along the sequence over `tensor`.
    """

    pipe: int = 1
    data: int = 1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    zero_stage: int = 3
    sequence_parallel: bool = False

    @classmethod
    def of(cls, layout: Layout) -> Mesh:
        """The mesh of a resolved layout."""
        return cls(**layout.sizes, zero_stage=layout.zero_stage, sequence_parallel=layout.sequence_parallel)

    @property
    def devices(self) -> int:
        """All of them."""
        return math.prod(getattr(self, axis) for axis in MESH_AXES)

    @property
    def rows(self) -> int:
        """Pieces that the rows of a batch are cut into."""
        return self.data * self.fsdp * self.expert

    def share(self, shape: Sequence[int], axes: Sequence[str], without: Sequence[str] = ()) -> int:
        """Numbers of a parameter on one device.

        Args:
          shape, axes: the parameter's.
          without: mesh axes that do not cut it.
        """
        used, ways = set(without), 1
        for axis in axes:
            mine = [name for name in DEFAULT_RULES.get(axis, ()) if name not in used]
            used.update(mine)
            ways *= math.prod(getattr(self, name) for name in mine)
        return math.prod(shape) // ways

    def pieces(self, shape: Sequence[int], axes: Sequence[str]) -> int:
        """Pieces of an array that belongs to a parameter but has other sizes.

        Args:
          shape: the array's; each axis is cut by the leading mesh axes that divide it.
          axes: the parameter's.
        """
        used: set[str] = set()
        pieces = 1
        for size, axis in zip(shape, axes, strict=True):
            mine = [name for name in DEFAULT_RULES.get(axis, ()) if name not in used]
            used.update(mine)
            ways = 1
            for name in mine:
                if size % (ways * getattr(self, name)):
                    break
                ways *= getattr(self, name)
            pieces *= ways
        return pieces
