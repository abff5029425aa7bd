"""Failure predictions, what became of them, and the patterns they were recognised by."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any

from vllm_monitor.records.lifecycle import LifecycleState

__all__ = [
    "FAILURE_TYPES",
    "FailurePattern",
    "FailurePrediction",
    "PredictionConfidence",
    "PredictionOutcome",
    "PredictionScore",
]

FAILURE_TYPES = (
    "engine_stall",
    "engine_death",
    "worker_death",
    "api_death",
    "api_frozen",
    "kv_exhaustion",
    "queue_saturation",
    "latency_breach",
    "error_surge",
    "memory_exhaustion",
    "fd_exhaustion",
    "startup_failure",
    "silent_degradation",
)
"""The failure types that the package itself speaks of; plugins may add their own."""


class PredictionConfidence(StrEnum):
    """How sure a prediction is, for a person; ``probability`` is the number."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    VERY_HIGH = "very_high"


class PredictionOutcome(StrEnum):
    """What became of a prediction.

    ``MITIGATED``: an action ran before it could be seen, so it is scored apart. ``CENSORED``: nobody can say,
    because the monitor was away or data were missing.
    """

    OPEN = "open"
    HAPPENED = "happened"
    DID_NOT_HAPPEN = "did_not_happen"
    MITIGATED = "mitigated"
    CENSORED = "censored"


@dataclass(frozen=True, slots=True)
class FailurePrediction:
    """The claim that a target will fail in a certain way within a certain time.

    Args:
        prediction_id: Unique across stores.
        timestamp: Unix seconds at which it was made.
        current_state: The target's state at that moment.
        predicted_failure_state: The state it is expected to enter, when that is known.
        failure_type: One of :data:`FAILURE_TYPES`, or a plugin's own.
        time_to_failure: Expected seconds until it fails.
        probability: That it fails within ``horizon_seconds``, 0 to 1.
        confidence: The same in a word.
        contributing_factors: What led to it, in words.
        recommended_mitigations: Names of strategies, best first.
        checkpoint_id: The checkpoint it was made from.
        horizon_seconds: How far the claim reaches.
        time_to_failure_low: Lower end of the interval for ``time_to_failure``.
        time_to_failure_high: Upper end.
        calibrated: Whether ``probability`` was calibrated on resolved predictions.
        model_version: What made it.
        outcome: What became of it.
        resolved_at: Unix seconds at which the outcome was known.
        target: The server's URL.
        metadata: Anything else.
    """

    prediction_id: str
    timestamp: float
    current_state: LifecycleState
    predicted_failure_state: LifecycleState | None
    failure_type: str
    time_to_failure: float
    probability: float
    confidence: PredictionConfidence
    contributing_factors: list[str]
    recommended_mitigations: list[Any]
    _: KW_ONLY
    checkpoint_id: str | None = None
    horizon_seconds: float = 300.0
    time_to_failure_low: float | None = None
    time_to_failure_high: float | None = None
    calibrated: bool = False
    model_version: str = ""
    outcome: PredictionOutcome = PredictionOutcome.OPEN
    resolved_at: float | None = None
    target: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePattern:
    """What preceded failures of one kind, and how often.

    Args:
        timestamp: Unix seconds at which it was first seen.
        failure_type: What followed.
        description: The pattern in a sentence.
        states: The states that were passed through, oldest first.
        error_signatures: Signatures in the log that belong to it.
        metric_conditions: Canonical metric name to what was true of it (an expression, or figures).
        occurrence_count: How often the pattern was followed by the failure.
        false_alarm_count: How often it was not.
        last_seen: Unix seconds of the newest occurrence.
        mean_lead_seconds: Mean time from the pattern to the failure.
        target: The server's URL; empty for a pattern of all servers.
        metadata: Anything else.
        pattern_id: Unique across stores; filled in when saved.
    """

    timestamp: float
    failure_type: str
    description: str = ""
    states: list[LifecycleState] = field(default_factory=list)
    error_signatures: list[str] = field(default_factory=list)
    metric_conditions: dict[str, Any] = field(default_factory=dict)
    occurrence_count: int = 0
    false_alarm_count: int = 0
    last_seen: float | None = None
    mean_lead_seconds: float | None = None
    target: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    pattern_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionScore:
    """How many predictions of one day, target, type and tenth of probability had one outcome.

    Args:
        day_start: Unix seconds at which the UTC day begins on which they were made.
        target: The server's URL.
        failure_type: What was predicted.
        outcome: What became of them; ``OPEN`` are those that nobody has resolved, or ever will.
        calibration_bin: Tenth of the probability, 0 to 9; ``None`` for a probability that is none.
        predictions: How many.
        probability_sum: Sum of their probabilities.
        probability_square_sum: Sum of the squares of those.
    """

    day_start: float
    target: str
    failure_type: str
    outcome: PredictionOutcome
    calibration_bin: int | None
    predictions: int
    probability_sum: float
    probability_square_sum: float

    @property
    def brier_sum(self) -> float | None:
        """Sum of their squared errors; ``None`` where an outcome has none (open, mitigated, censored)."""
        if self.outcome is PredictionOutcome.HAPPENED:
            return self.predictions - 2 * self.probability_sum + self.probability_square_sum
        if self.outcome is PredictionOutcome.DID_NOT_HAPPEN:
            return self.probability_square_sum
        return None
