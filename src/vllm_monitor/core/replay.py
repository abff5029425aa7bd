"""Replays a recording through the pipeline that watches live servers.

A result is delivered when it was there, never when it was asked for, and ground truth is not delivered at all, so
no verdict before time T depends on anything after T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm_monitor.collectors import Recording
from vllm_monitor.core.pipeline import TargetPipeline, Tick
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.predictive_failure_detection import Predictor

__all__ = ["ReplayReport", "count_ticks", "replay_ticks"]

DEFAULT_INTERVAL_SECONDS = 1.0
QUIET_SECONDS = 600.0
"""Ticks go on for so long after the last result; then the hole in the recording is skipped."""


@dataclass(slots=True)
class ReplayReport:
    """What a replay found.

    Args:
        recording: Name of the recording.
        ticks: How many ticks were judged.
        timeline: One entry per change of state or condition: ``ts, target, state, condition, reason``.
        alerts: Alerts that began to fire or were resolved: ``ts, target, name, severity, state, message``.
        predictions: Predictions: ``ts, failure_type, probability, time_to_failure``.
    """

    recording: str
    ticks: int = 0
    timeline: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def add(self, tick: Tick) -> None:
        """Take in one tick."""
        self.ticks += 1
        snapshot = tick.snapshot
        for prediction in tick.predictions:
            self.predictions.append(
                {
                    "ts": round(prediction.timestamp, 3),
                    "failure_type": prediction.failure_type,
                    "probability": prediction.probability,
                    "time_to_failure": prediction.time_to_failure,
                }
            )
        for alert in tick.alerts:
            self.alerts.append(
                {
                    "ts": round(snapshot.timestamp, 3),
                    "target": alert.target,
                    "name": alert.name,
                    "severity": alert.severity.value,
                    "state": alert.state.value,
                    "message": alert.message,
                }
            )
        last = self.timeline[-1] if self.timeline else None
        verdict = (snapshot.state.value, snapshot.condition.value)
        if last is None or (last["state"], last["condition"]) != verdict:
            self.timeline.append(
                {
                    "ts": round(snapshot.timestamp, 3),
                    "target": snapshot.target,
                    "state": snapshot.state.value,
                    "condition": snapshot.condition.value,
                    "reason": snapshot.reason,
                }
            )

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, in the documented order of keys."""
        return {
            "recording": self.recording,
            "ticks": self.ticks,
            "timeline": self.timeline,
            "alerts": self.alerts,
            "predictions": self.predictions,
        }


def replay_ticks(
    recording: Recording,
    *,
    store: PersistenceManager | None = None,
    interval_seconds: float | None = None,
    guardrails: Guardrails | None = None,
    predictor: Predictor | None = None,
) -> Iterator[Tick]:
    """Replay a recording tick by tick, as fast as the consumer asks.

    Args:
        recording: What was recorded; its observations are in the order in which their results were there.
        store: Where samples and checkpoints go; ``None`` keeps nothing.
        interval_seconds: Time between two ticks; by default that of the recording.
        guardrails: Conditions that must not be met; by default those of the package.
        predictor: Predicts failures; ``None`` for none.

    Yields:
        One :class:`Tick` per interval, from the first observation to the last.
    """
    observations = recording.observations
    if not observations:
        return
    interval = interval_seconds or recording.interval_seconds or DEFAULT_INTERVAL_SECONDS
    pipeline = TargetPipeline(
        recording.target,
        tracker=LifecycleTracker(store, resume=False),
        guardrails=Guardrails(store, resume=False) if guardrails is None else guardrails,
        store=store,
        predictor=predictor,
    )
    began = min(observation.timestamp for observation in observations)
    position, count = 0, 0
    quiet_from = began
    while position < len(observations):
        now = began + count * interval
        end = position
        while end < len(observations) and observations[end].visible_at <= now:
            end += 1
        yield pipeline.step(now, observations[position:end])
        count += 1
        if end > position:
            quiet_from, position = now, end
        elif now - quiet_from > QUIET_SECONDS:
            # Nothing for so long: go on just before the next result instead of ticking through the hole.
            count = max(count, int((observations[position].visible_at - began) / interval))


def count_ticks(recording: Recording, interval_seconds: float | None = None) -> int:
    """How many ticks :func:`replay_ticks` will yield."""
    if not recording.observations:
        return 0
    interval = interval_seconds or recording.interval_seconds or DEFAULT_INTERVAL_SECONDS
    began = min(observation.timestamp for observation in recording.observations)
    return math.ceil((recording.observations[-1].visible_at - began) / interval) + 1
