"""When a guardrail would have fired: over what is stored of a server, or over a recording.

Over the store, figures come from the stored pages through the same picture as live; state and condition are those of
the stored checkpoints, so what the judge decided with evidence that is not stored (processes, the log) counts as well.
It is asked at every moment at which the watch looked, also when no page came: a server that died has none.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vllm_monitor.collectors import Recording
from vllm_monitor.core.replay import replay_ticks
from vllm_monitor.guardrails import Guardrails, make_context
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import StoredPages, TargetPicture
from vllm_monitor.records import (
    FAILURE_TYPES,
    Alert,
    Condition,
    FailurePrediction,
    GuardrailPolicy,
    LifecycleState,
    StateCheckpoint,
)

__all__ = ["fired_in_recording", "fired_in_store"]

TELL_SECONDS = 60.0
_COUNTS = ("restarts", "crashes", "failures_in_a_row")


def fired_in_recording(policy: GuardrailPolicy, recording: Recording) -> Iterator[Alert]:
    """Alerts of a policy that began to fire, or were resolved, in a recording.

    Raises:
        InvalidConditionError: When its condition cannot be understood.
    """
    guardrails = Guardrails(built_in=())
    guardrails.register(replace(policy, enabled=True))
    for tick in replay_ticks(recording, guardrails=guardrails):
        yield from tick.alerts


def fired_in_store(
    policy: GuardrailPolicy,
    store: PersistenceManager,
    target: str,
    start: float,
    end: float,
    *,
    labels: Mapping[str, str] | None = None,
    advance: Callable[[float], None] = lambda _seconds: None,
) -> Iterator[Alert]:
    """Alerts of a policy that would have begun to fire, or been resolved, over what is stored of a server.

    Args:
        policy: The guardrail.
        store: The store.
        target: The server's URL.
        start: Unix seconds.
        end: Unix seconds.
        labels: Labels of the target.
        advance: Told how many seconds of history were read.

    Raises:
        InvalidConditionError: When its condition cannot be understood.
    """
    guardrails = Guardrails(built_in=())
    guardrails.register(replace(policy, enabled=True))
    story = _Story(store.get_checkpoints(end_time=end, limit=None, target=target))
    forecasts = _Forecasts(store.get_predictions(end_time=end, limit=None, target=target))
    picture = TargetPicture(target)
    told = start
    for now, page in StoredPages(store, target).looks(start, end):
        if page is not None:
            picture.observe(page)
            continue
        state, condition, facts = story.at(now)
        facts["predictions"] = forecasts.at(now)
        values = picture.values(now)
        snapshot = replace(picture.snapshot(now, state, values), condition=condition, condition_since=story.since)
        context = make_context(snapshot, {**facts, "labels": dict(labels or {})})
        yield from guardrails.evaluate(target, now, context, values)
        if now - told >= TELL_SECONDS:
            advance(now - told)
            told = now


class _Forecasts:
    """What was predicted of a server, as of a time."""

    def __init__(self, predictions: list[FailurePrediction]) -> None:
        self._predictions = predictions[::-1]  # they come newest first

    def at(self, now: float) -> dict[str, float]:
        """Failure type to the probability of the newest prediction that was open."""
        return {
            **dict.fromkeys(FAILURE_TYPES, 0.0),
            **{
                one.failure_type: one.probability
                for one in self._predictions
                if one.timestamp <= now < min(one.timestamp + one.horizon_seconds, one.resolved_at or math.inf)
            },
        }


class _Story:
    """State and condition of a server over time, as its checkpoints tell."""

    def __init__(self, checkpoints: list[StateCheckpoint]) -> None:
        self._checkpoints = checkpoints[::-1]  # they come newest first
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
