"""A layout as the closed form sees it: devices per axis, and what they leave of an array on one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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

    @classmethod
    def sized(cls, sizes: Mapping[str, int]) -> Mesh:
        """With so many devices along the axes; all else is the default."""
        return cls.of(Layout(dict(sizes), "hybrid"))

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
        return math.prod(shape) // _ways(self, tuple(axes), tuple(without))

    def divides(self, shape: Sequence[int], axes: Sequence[str]) -> bool:
        """Whether a parameter can be cut so; training refuses what cannot.

        Args:
          shape, axes: the parameter's.
        """
        return all(size % math.prod(cuts) == 0 for size, cuts in zip(shape, self.cuts(axes), strict=True))

    def pieces(self, shape: Sequence[int], axes: Sequence[str]) -> int:
        """Pieces of an array that belongs to a parameter but has other sizes.

        Args:
          shape: the array's; each axis is cut by the leading mesh axes that divide it.
          axes: the parameter's.
        """
        pieces = 1
        for size, cuts in zip(shape, self.cuts(axes), strict=True):
            ways = 1
            for cut in cuts:
                if size % (ways * cut):
                    break
                ways *= cut
            pieces *= ways
        return pieces

    def cuts(self, axes: Sequence[str], without: Sequence[str] = ()) -> Iterator[list[int]]:
        """Sizes of the mesh axes that cut each axis of an array, which a mesh axis serves once."""
        used = set(without)
        for axis in axes:
            mine = [name for name in DEFAULT_RULES.get(axis, ()) if name not in used]
            used.update(mine)
            yield [getattr(self, name) for name in mine]


@lru_cache(maxsize=4096)  # a search asks again and again
def _ways(mesh: Mesh, axes: tuple[str, ...], without: tuple[str, ...]) -> int:
    return math.prod(map(math.prod, mesh.cuts(axes, without)))
