"""Whether an API server was killed for its memory: it died while that had been growing."""

from __future__ import annotations

import math

from vllm_monitor.picture import Snapshot
from vllm_monitor.records import Condition

__all__ = ["MemoryDeath"]

LEAST_GROWTH_SECONDS = 60.0
LEAST_GROWTH_RATIO = 1.2
"""Against what it was when it began to grow. A server that warms up grows as well, but not so far for so long."""
LONGEST_SILENCE_SECONDS = 60.0
"""A server short of memory may answer no more for a while before it is killed; what it was long ago says nothing."""
_ENGINE_FIRST = (Condition.ENGINE_DEAD, Condition.WORKER_DEAD)
_BEGINS_ANEW = (Condition.STOPPED, Condition.STARTING)


class MemoryDeath:
    """Follows the memory of one API server and its death. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None  # when it began to grow, and what it was then
        self._newest = (0.0, 0.0)
        self._start_time: float | None = None
        self._is_growing = False
        self._is_dead = False
        self._was_killed = False
        self._condition = Condition.UNKNOWN

    def go_on(self) -> None:
        """It was killed for its memory, or short of it, when it was last seen."""
        self._is_dead = self._was_killed = True

    def observe(self, snapshot: Snapshot) -> bool:
        """One tick.

        Returns:
            Whether the API server is gone and was killed for its memory.
        """
        if snapshot.condition is Condition.UNKNOWN and self._was_killed:
            return True  # nothing speaks against it yet
        is_dead = _has_died(snapshot)
        if is_dead and not self._is_dead:
            # An API server follows its engine: when that went first, it was not the API server's memory.
            self._was_killed = self._condition not in _ENGINE_FIRST and self._grew(snapshot.timestamp)
        elif not is_dead:
            self._was_killed = False
            self._see(snapshot)
        self._is_dead, self._condition = is_dead, snapshot.condition
        return self._was_killed

    def _grew(self, now: float) -> bool:
        if self._began is None or not self._is_growing:
            return False
        (since, least), (at, most) = self._began, self._newest
        lately = 0.0 <= now - at <= LONGEST_SILENCE_SECONDS
        return lately and at - since >= LEAST_GROWTH_SECONDS and most >= LEAST_GROWTH_RATIO * least

    def _see(self, snapshot: Snapshot) -> None:
        values, now = snapshot.values, snapshot.timestamp
        used, start_time = values.get("api_resident_memory_bytes"), values.get("api_start_time_seconds")
        if snapshot.condition in _BEGINS_ANEW:
            self._began = None
        if used is None or not math.isfinite(used):
            return
        at, most = self._newest
        if self._began is None or used < most or now < at or start_time != self._start_time or used <= self._began[1]:
            self._began = (now, used)
        self._newest, self._start_time = (now, used), start_time
        self._is_growing = values.get("api_resident_memory_growth_bytes_per_second", 0.0) > 0.0


def _has_died(snapshot: Snapshot) -> bool:
    condition = snapshot.condition
    if condition is Condition.ENGINE_DEAD:  # found together with its API server, which answers no more
        return snapshot.health_status is None and all(process.role != "api" for process in snapshot.processes)
    return condition in (Condition.API_DEAD, Condition.UNREACHABLE)
