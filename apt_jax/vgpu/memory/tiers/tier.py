"""What a kind of memory has to be able to do, and what a stack is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from apt_jax.core.errors import AptError

Leaf = jax.Array | np.ndarray
Home = jax.sharding.Sharding | None  # where an array lay when it was given; None: it came from numpy


class TierError(AptError):
    """A value is unknown, fits nowhere, or a level of memory failed to take it or to give it back."""


class Tier(Protocol):
    """A kind of memory. One thread copies at a time; what costs nothing (`holds`, `delete`, all of it for arrays that
    lie here already) may be called beside it.

    Attributes:
      in_memory: reading costs nothing: `read` gives back what `write` returned, and the arrays are usable as they are.
        Otherwise a promoted value leaves its copy behind, so that it need not be written again while unchanged.
    """

    @property
    def in_memory(self) -> bool: ...

    def holds(self, leaves: Sequence[Leaf], homes: Sequence[Home]) -> bool:
        """True if the arrays lie here already, so that `write` copies nothing."""
        ...

    def write(self, key: str, leaves: Sequence[Leaf], homes: Sequence[Home]) -> Any:
        """Stores arrays and returns what `read` needs to find them; done when it returns, or nothing is left behind.

        Raises:
          TierError: names the key, the place and the cause.
        """
        ...

    def read(self, key: str, stored: Any) -> Sequence[Leaf]:
        """The arrays, bit for bit. Raises TierError as `write`."""
        ...

    def delete(self, stored: Any) -> None:
        """Forgets what `write` returned; it may have vanished already."""
        ...

    def close(self) -> None:
        """The stack is gone, and all it had stored here."""
        ...


@dataclass(frozen=True)
class Level:
    """One level of a stack.

    Attributes:
      name: for messages and statistics.
      tier: the memory.
      capacity: bytes of values that may lie here, copies in flight included. A value counts with its array bytes.
    """

    name: str
    tier: Tier
    capacity: int

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise TierError(f"level '{self.name}': capacity is {self.capacity} bytes; give at least 1")


def size(num_bytes: float) -> str:
    """`12.0 MiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        del units[0]
    return f"{num_bytes:,.0f} B" if units[0] == "B" else f"{num_bytes:,.1f} {units[0]}"
