"""Steps between the engine's event loop, which only appends, and our thread, which only takes away."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

__all__ = ["Step", "StepBuffer"]


class Step(NamedTuple):
    """One message of the engine, as vLLM handed it over.

    Args:
        at: Seconds of the monotonic clock.
        engine: Index of the engine.
        scheduler: vLLM's ``SchedulerStats``, or ``None``.
        iteration: vLLM's ``IterationStats``, or ``None`` for a step without outputs.
    """

    at: float
    engine: int
    scheduler: Any
    iteration: Any


class StepBuffer:
    """A bounded queue whose writer never waits. Appending and taking are each safe from one thread.

    vLLM makes new objects for every step and only reads them afterwards, so holding on to them is safe and is all that
    has to be done on its loop.

    Args:
        capacity: Steps that fit; further ones are counted and dropped.
    """

    __slots__ = ("_capacity", "_steps", "last_at", "lost", "taken_in")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._steps: deque[Step] = deque()
        self.lost = 0
        self.taken_in = 0
        self.last_at: float | None = None

    def append(self, engine: int, scheduler: object, iteration: object, monotonic: Any = time.monotonic) -> None:
        """Keep a step for the thread; O(1), no I/O, no lock."""
        self.last_at = at = monotonic()
        if len(self._steps) >= self._capacity:
            self.lost += 1
            return
        self.taken_in += 1
        self._steps.append(Step(at, engine, scheduler, iteration))

    def take(self, limit: int) -> list[Step]:
        """Take away up to ``limit`` of the oldest steps."""
        taken: list[Step] = []
        while len(taken) < limit:
            try:
                taken.append(self._steps.popleft())
            except IndexError:
                break
        return taken
