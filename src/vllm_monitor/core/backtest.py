"""When a guardrail would have fired: over what is stored of a server, or over a recording.

Over the store, figures come from the stored pages through the same picture as live; state and condition are those of
the stored checkpoints, so what the judge decided with evidence that is not stored (processes, the log) counts as well.
It is asked at every moment at which the watch looked, also when no page came: a server that died has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from vllm_monitor.collectors import Recording
from vllm_monitor.core.replay import replay_ticks
from vllm_monitor.core.stored_states import StoredStates
from vllm_monitor.guardrails import Guardrails, make_context
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import StoredPages, TargetPicture
from vllm_monitor.records import (
    FAILURE_TYPES,
    Alert,
    FailurePrediction,
    GuardrailPolicy,
)

__all__ = ["fired_in_recording", "fired_in_store"]

TELL_SECONDS = 60.0


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
    story = StoredStates(store.get_checkpoints(end_time=end, limit=None, target=target))
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
