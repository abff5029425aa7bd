"""Steps between the engine's event loop, which only appends, and our thread, which only takes away."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

__all__ = ["Step", "StepBuffer"]

Step = tuple[float, int, Any, Any]
"""One message of the engine, as vLLM handed it over: seconds of the monotonic clock, the engine's index, vLLM's
``SchedulerStats`` or ``None``, and its ``IterationStats``, or ``None`` for a step without outputs."""


class StepBuffer:
    """A bounded queue whose writer never waits. Appending and taking are each safe from one thread.

    vLLM makes new objects for every step and only reads them afterwards, so holding on to them is safe and is all that
    has to be done on its loop.

    Args:
        capacity: Steps that fit; then the oldest go, and are counted.
        monotonic: Seconds of a clock that never jumps.

    Attributes:
        appended: Steps that have come.
        last_at: When the last step that was taken away had come; ``None`` before the first.
        lost: Steps that there was no room for, as far as that was seen when steps were taken away.
    """

    __slots__ = ("_monotonic", "_steps", "_taken", "appended", "last_at", "lost")

    def __init__(self, capacity: int, monotonic: Any = time.monotonic) -> None:
        self._steps: deque[Step] = deque(maxlen=capacity)
        self._monotonic = monotonic
        self.appended = 0
        self._taken = 0
        self.lost = 0
        self.last_at: float | None = None

    def append(self, engine: int, scheduler: object, iteration: object) -> None:
        """Keep a step for the thread; O(1), no I/O, no lock."""
        self.appended += 1
        self._steps.append((self._monotonic(), engine, scheduler, iteration))

    def take(self, limit: int) -> list[Step]:
        """Take away up to ``limit`` of the oldest steps."""
        # Counted first: what is appended meanwhile is there, but not missed.
        appended = self.appended
        self.lost = max(self.lost, appended - self._taken - len(self._steps))
        # Only this thread takes away, so at least as many are there as are seen now.
        steps = [self._steps.popleft() for _ in range(min(limit, len(self._steps)))]
        self._taken += len(steps)
        if steps:
            self.last_at = steps[-1][0]
        return steps
