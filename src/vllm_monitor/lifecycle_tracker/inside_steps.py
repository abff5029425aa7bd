"""The facts of the inside that wait for their place in a server's story."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_monitor.lifecycle_tracker.inside_facts import INSIDE_KEY, SINCE_KEY, is_inside, key_of, told_inside
from vllm_monitor.lifecycle_tracker.step import Step
from vllm_monitor.lifecycle_tracker.track import Track

__all__ = ["inside_steps"]

LATE_SECONDS = 60.0
"""What was told so long ago says so: its checkpoint has the time at which the story learned of it."""


def inside_steps(track: Track, now: float) -> Iterator[Step]:
    """What the inside told, as steps that leave state and condition as they are, oldest first.

    None while no state is known, or it is not known yet what happened while the monitor was away; and none of what is
    in the story already, as after a restart of the monitor that reads its last second again.

    Args:
        track: The server's; what waits is taken from it, what is known of its engine goes into it.
        now: Unix seconds.
    """
    if not track.told_inside or track.state is None or track.away_since is not None:
        return
    known = {key_of(one.metadata.get(INSIDE_KEY)) for one in track.recent}
    while track.told_inside:
        told = told_inside(track.told_inside.popleft(), track.engine)
        if told is None or key_of(told.facts) in known:
            continue
        known.add(key_of(told.facts))
        judged = next((one for one in reversed(track.recent) if not is_inside(one)), None)
        track.engine = told.engine
        at = max(min(told.facts["at"], now), track.newest_at())
        facts = dict(told.facts)
        if at - facts["at"] >= LATE_SECONDS:
            facts["words"] += f" ({at - facts['at']:.0f} s ago)"
        yield Step(
            at=at,
            # Who asks the newest checkpoint for the verdict gets the one that holds.
            reason="" if judged is None else judged.reason,
            values=told.metrics,
            metadata={
                INSIDE_KEY: facts,
                SINCE_KEY: track.since if judged is None else judged.timestamp,
            },
        )
