"""The lifecycle of a server as the store tells it, for looking back."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from vllm_monitor.lifecycle_tracker import is_inside
from vllm_monitor.records import Condition, LifecycleState, StateCheckpoint

__all__ = ["StoredStates"]

_COUNTS = ("restarts", "crashes", "failures_in_a_row")


class StoredStates:
    """State and condition of a server over time, as its checkpoints tell.

    Args:
        checkpoints: As the store gives them, newest first.
    """

    def __init__(self, checkpoints: list[StateCheckpoint]) -> None:
        # They come newest first; what was told inside changes no state.
        self._checkpoints = [one for one in reversed(checkpoints) if not is_inside(one)]
        self._times = [one.timestamp for one in self._checkpoints]
        self.since = 0.0

    def at(self, now: float) -> tuple[LifecycleState, Condition, dict[str, Any]]:
        """State, condition and the figures of the life as of a time."""
        index = bisect_right(self._times, now) - 1
        if index < 0:
            return LifecycleState.NOT_STARTED, Condition.UNKNOWN, {}
        newest = self._checkpoints[index]
        self.since = newest.timestamp
        counts = newest.metadata.get("counts")
        known = counts if isinstance(counts, dict) else {}
        figures: dict[str, Any] = {name: int(known.get(name, 0)) for name in _COUNTS}
        figures["state_seconds"] = max(0.0, now - newest.timestamp)
        return newest.state, newest.condition or Condition.UNKNOWN, figures
