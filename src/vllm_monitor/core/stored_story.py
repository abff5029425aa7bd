"""What the store tells of failures and predictions of a target, for a watch that goes on after an earlier one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from vllm_monitor.failures import Episode, stored_episodes
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import Condition, FailurePrediction, PredictionOutcome

__all__ = ["StoredStory", "read_story"]

EVENTS_READ = 2_000
"""Newest events of each kind. A failure that went on while so many others came and went is told anew."""
MOST_SECONDS_READ = 86_400.0
"""Horizons are looked at up to this sum, the newest first; of older ones nobody can say whether they were watched."""
MITIGATIONS_READ = 1_000
_UNSEEN = (Condition.UNKNOWN, Condition.UNREACHABLE)

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class StoredStory:
    """What is stored.

    Args:
        failures: Failures, oldest first.
        predictions: Those that nobody has settled.
        watched: Stretches (unix seconds) within their horizons in which there was a verdict, ascending.
        mitigations: Unix seconds at which attempts to mitigate began.
        last_seen: Unix seconds of the newest sample of the server.
    """

    failures: list[Episode] = field(default_factory=list)
    predictions: list[FailurePrediction] = field(default_factory=list)
    watched: list[Interval] = field(default_factory=list)
    mitigations: list[float] = field(default_factory=list)
    last_seen: float | None = None


def read_story(store: PersistenceManager, target: str, *, now: float, longest_hole_seconds: float) -> StoredStory:
    """Read it. Not for an event loop.

    Args:
        store: The store.
        target: The server's URL.
        now: Unix seconds.
        longest_hole_seconds: Looks that are further apart than this have a hole between them.
    """
    predictions = store.get_predictions(limit=None, target=target, outcome=PredictionOutcome.OPEN)
    first = min((one.timestamp for one in predictions), default=None)
    attempts = (
        [] if first is None else store.get_mitigation_history(limit=MITIGATIONS_READ, target=target, start_time=first)
    )
    seen = [sample["timestamp"] for sample in store.latest(target=target)]
    return StoredStory(
        failures=stored_episodes(store, target=target, limit=EVENTS_READ),
        predictions=predictions,
        watched=_watched(store, target, _horizons(predictions, now), longest_hole_seconds),
        mitigations=[one.timestamp for one in attempts],
        last_seen=max(seen, default=None),
    )


def _horizons(predictions: Sequence[FailurePrediction], now: float) -> list[Interval]:
    """What must be known of them: from the making to the end, as far as that has passed, and no more than can be read.

    A horizon that makes no sense, or is longer, is left out: nobody can tell how much of it was watched.
    """
    spans = ((one.timestamp, min(one.timestamp + one.horizon_seconds, now)) for one in predictions)
    return [(start, end) for start, end in spans if start > 0.0 and 0.0 < end - start <= MOST_SECONDS_READ]


def _watched(
    store: PersistenceManager, target: str, horizons: Sequence[Interval], longest_hole_seconds: float
) -> list[Interval]:
    """Stretches of the horizons in which looks were close to each other and the server could be seen."""
    left = MOST_SECONDS_READ
    found: list[Interval] = []
    for joined_start, end in reversed(_joined(horizons)):
        start = max(joined_start, end - left)  # the newest part of what is too long together
        if end <= start:
            break
        left -= end - start
        times = store.scrape_times(target, start - longest_hole_seconds, end).get("probes")
        looks = [] if times is None else [time_ms / 1000 for time_ms in times.tolist()]
        blind = _Blind(store, target, start - longest_hole_seconds, end)
        stretches = [
            (before, after)
            for before, after in pairwise(looks)
            if 0.0 < after - before <= longest_hole_seconds and not blind.at(after)
        ]
        found += reversed(_joined(stretches))
    return found[::-1]


def _joined(intervals: Sequence[Interval]) -> list[Interval]:
    """Those that touch or overlap as one, ascending."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


class _Blind:
    """When the verdict was that the server cannot be seen, as its checkpoints tell."""

    def __init__(self, store: PersistenceManager, target: str, start: float, end: float) -> None:
        before = store.get_checkpoints(end_time=start, limit=1, target=target)
        within = store.get_checkpoints(start_time=start, end_time=end, limit=None, target=target)
        told = sorted([*before, *within], key=lambda one: one.timestamp)
        known = [one for one in told if one.condition is not None]  # a state that was passed through has none
        self._times = [one.timestamp for one in known]
        self._is_blind = [one.condition in _UNSEEN for one in known]

    def at(self, time: float) -> bool:
        index = bisect_right(self._times, time) - 1
        return index >= 0 and self._is_blind[index]
