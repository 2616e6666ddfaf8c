"""Which value leaves a level when another one needs the room."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Candidate:
    """A value that may leave: not pinned, not on its way.

    Attributes:
      key: the value's.
      num_bytes: of its arrays.
      priority: as given to `put`; higher stays longer.
      last_used: number of the request that used it last; they are counted over the stack.
    """

    key: str
    num_bytes: int
    priority: int
    last_used: int


class Victims(Protocol):
    """Chooses victims. Called with the stack's lock held: it must neither block nor call the stack."""

    def used(self, key: str) -> None:
        """A request was made for `key`."""
        ...

    def choose(self, level: int, candidates: Sequence[Candidate]) -> str:
        """The key of the one that leaves `level`; there is at least one candidate."""
        ...


class LeastRecentlyUsed:
    """The lowest priority goes first, and of these the one not used for longest."""

    def used(self, key: str) -> None:
        """Nothing to remember: candidates carry their last use."""

    def choose(self, level: int, candidates: Sequence[Candidate]) -> str:
        return min(candidates, key=lambda each: (each.priority, each.last_used)).key


class FarthestInPlan:
    """Belady's rule: the one used farthest in the future goes first; what is not in the plan before all that is.

    Optimal where the order of requests is known, as in sweeps over layers, where LRU would hit nothing: a level that
    holds p % of the layers hits p %. (L. A. Belady, IBM Systems Journal 5(2), 1966.)
    """

    def __init__(self, plan: Sequence[str], *, cyclic: bool = False):
        """Args:
        plan: keys in the order in which they will be requested.
        cyclic: the plan begins anew at its end.
        """
        self._length, self._cyclic, self._next = len(plan), cyclic, 0
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(plan):
            self._places[key].append(place)
        self._rest = LeastRecentlyUsed()

    def distance(self, key: str) -> float:
        """Requests of the plan before that of `key`; infinite if there is none."""
        places = self._places.get(key, [])
        at = bisect.bisect_left(places, self._next)
        if at < len(places):
            return places[at] - self._next
        return places[0] + self._length - self._next if self._cyclic and places else math.inf

    def used(self, key: str) -> None:
        distance = self.distance(key)
        if math.isfinite(distance):
            self._next += int(distance) + 1
            if self._cyclic:
                self._next %= self._length

    def choose(self, level: int, candidates: Sequence[Candidate]) -> str:
        distances = [self.distance(each.key) for each in candidates]
        farthest = max(distances)
        return self._rest.choose(
            level, [each for each, far in zip(candidates, distances, strict=True) if far == farthest]
        )
