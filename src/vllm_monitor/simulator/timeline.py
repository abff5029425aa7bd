"""Things that will happen at a known time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

__all__ = ["Timeline"]


class Timeline:
    """Actions in order of time; those of one moment in the order in which they were planned."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def next_at(self) -> float:
        """When the next action is due; infinity when there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def plan(self, at: float, action: Callable[[], None]) -> None:
        """Do ``action`` at ``at``."""
        heapq.heappush(self._heap, (at, next(self._order), action))

    def run_due(self, now: float) -> None:
        """Do everything due up to ``now``."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2]()
