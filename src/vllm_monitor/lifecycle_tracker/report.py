"""Where a server stands, in JSON values."""

from __future__ import annotations

from typing import Any

from vllm_monitor.lifecycle_tracker.track import Track
from vllm_monitor.records import LifecycleState

__all__ = ["report_of"]

CHECKPOINTS_SHOWN = 20


def report_of(target: str, track: Track, now: float) -> dict[str, Any]:
    """The report of one server.

    Args:
        target: Its URL.
        track: What is known of it.
        now: Unix seconds.
    """
    state = track.state if track.state is not None else LifecycleState.NOT_STARTED
    return {
        "target": target,
        "state": state.value,
        "condition": track.condition.value if track.condition is not None else None,
        "since": track.since,
        "seconds_in_state": max(0.0, now - track.since) if track.since else 0.0,
        **track.counts(),
        "last_crash": track.crash_facts or None,
        "startup": [
            {
                "phase": timing.phase.value,
                "began_at": timing.began_at,
                "seconds": timing.seconds,
                "usual_seconds": timing.usual_seconds,
                "is_over": timing.is_over,
                "is_slow": timing.is_slow,
            }
            for timing in track.history.timeline(track.startup, now)
        ],
        "recent": [
            {
                "timestamp": one.timestamp,
                "state": one.state.value,
                "previous_state": one.previous_state.value if one.previous_state is not None else None,
                "transition_type": one.transition_type.value if one.transition_type is not None else None,
                "condition": one.condition.value if one.condition is not None else None,
                "reason": one.reason,
            }
            for one in list(track.recent)[-CHECKPOINTS_SHOWN:]
        ],
    }
