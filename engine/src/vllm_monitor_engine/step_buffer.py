"""Steps between the engine's event loop, which only appends, and our thread, which only takes away."""

from __future__ import annotations

from collections import deque
from typing import Any

__all__ = ["Step", "StepBuffer"]

Step = tuple[float, int, Any, Any]
"""One message of the engine, as vLLM handed it over: seconds of the monotonic clock, the engine's index, vLLM's
``SchedulerStats`` or ``None``, and its ``IterationStats``, or ``None`` for a step without outputs."""


class StepBuffer(deque[Step]):
    """A bounded queue whose writer never waits. Appending and taking are each safe from one thread.

    vLLM makes new objects for every step and only reads them afterwards, so holding on to them is safe and is all that
    has to be done on its loop. Its writer looks itself whether there is room, and counts a step that has none.

    Args:
        capacity: Steps that fit.

    Attributes:
        lost: Steps that there was no room for.
        taken: Steps that were taken away.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.lost = 0
        self.taken = 0
        self._last_at: float | None = None

    @property
    def newest_at(self) -> float | None:
        """When the newest step came; ``None`` before the first. For the thread that takes away."""
        return self[-1][0] if self else self._last_at

    def take(self, limit: int) -> list[Step]:
        """Take away up to ``limit`` of the oldest steps."""
        # Only this thread takes away, so at least as many are there as are seen now.
        steps = [self.popleft() for _ in range(min(limit, len(self)))]
        if steps:
            self.taken += len(steps)
            self._last_at = steps[-1][0]
        return steps
