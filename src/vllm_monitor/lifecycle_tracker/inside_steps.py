"""The facts of the inside that wait for their place in a server's story."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from vllm_monitor.lifecycle_tracker.inside_facts import INSIDE_KEY, SINCE_KEY, is_inside, key_of, told_inside
from vllm_monitor.lifecycle_tracker.step import Step
from vllm_monitor.lifecycle_tracker.track import Track
from vllm_monitor.records import EngineNote

__all__ = ["inside_steps"]

LATE_SECONDS = 60.0
"""What was told so long ago says so: its checkpoint has the time at which the story learned of it."""


def inside_steps(track: Track, target: str, now: float) -> Iterator[Step]:
    """What the inside told, as steps that leave state and condition as they are, oldest first.

    None while no state is known, or it is not known yet what happened while the monitor was away; and none of what is
    in the story already, as after a restart of the monitor that reads its last seconds again: a fact that has an id is
    known by it, another one by what it says.

    Args:
        track: The server's; what waits is taken from it, what is known of its engine goes into it.
        target: The server's URL.
        now: Unix seconds.
    """
    if not track.told_inside or track.state is None or track.away_since is not None:
        return
    known: set[Any] = {one.checkpoint_id for one in track.recent}
    known |= {key_of(one.metadata.get(INSIDE_KEY)) for one in track.recent}
    while track.told_inside:
        note = track.told_inside.popleft()
        told = told_inside(note, track.engine)
        checkpoint_id = _id_of(target, note)
        key = checkpoint_id or (None if told is None else key_of(told.facts))
        if told is None or key in known:
            continue
        known.add(key)
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
            checkpoint_id=checkpoint_id,
            metadata={
                INSIDE_KEY: facts,
                SINCE_KEY: track.since if judged is None else judged.timestamp,
            },
        )


def _id_of(target: str, note: EngineNote) -> str | None:
    """The same id for the same fact, so that it is stored once, however often it is told."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"checkpoint {target} {note.note_id}").hex if note.note_id else None
