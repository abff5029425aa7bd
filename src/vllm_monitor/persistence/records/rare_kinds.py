"""The kinds of records that are kept as rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_monitor.persistence.codecs.columns import Form, UnknownObject
from vllm_monitor.persistence.records.rare_rows import RareKind
from vllm_monitor.records import (
    Alert,
    AlertState,
    AttemptStatus,
    Condition,
    Event,
    FailurePattern,
    FailurePrediction,
    HappyPath,
    LifecycleState,
    MitigationAttempt,
    MitigationOutcome,
    PredictionConfidence,
    PredictionOutcome,
    RequestSummary,
    Severity,
    StateCheckpoint,
    StateTransition,
)

__all__ = [
    "ALERTS",
    "ALL_KINDS",
    "ATTEMPTS",
    "CHECKPOINTS",
    "EVENTS",
    "HAPPY_PATHS",
    "LEARNING",
    "PATTERNS",
    "PREDICTIONS",
    "REQUESTS",
    "LearningRecord",
    "StoredHappyPath",
]

_FIRST = {"target": Form.TEXT, "timestamp": Form.TIME}

CHECKPOINTS = RareKind(
    table="checkpoints",
    record_type=StateCheckpoint,
    id_field="checkpoint_id",
    forms={
        "checkpoint_id": Form.TEXT,
        **_FIRST,
        "state": LifecycleState,
        "previous_state": LifecycleState,
        "transition_type": StateTransition,
        "condition": Condition,
        "reason": Form.TEXT,
        "arguments": Form.JSON,
        "environment": Form.JSON,
        "hardware_state": Form.JSON,
        "error_context": Form.JSON,
        "interventions_triggered": Form.JSON,
        "guardrails_enforced": Form.JSON,
        "metrics": Form.JSON,
        "metadata": Form.JSON,
    },
    filters=("state",),
    redacted=("arguments", "environment"),
    scrubbed=("reason", "error_context", "metadata"),
)

EVENTS = RareKind(
    table="events",
    record_type=Event,
    id_field="event_id",
    forms={
        "event_id": Form.TEXT,
        **_FIRST,
        "event_type": Form.TEXT,
        "severity": Severity,
        "message": Form.TEXT,
        "data": Form.JSON,
        "metadata": Form.JSON,
    },
    filters=("event_type",),
    scrubbed=("message", "data", "metadata"),
)

PREDICTIONS = RareKind(
    table="predictions",
    record_type=FailurePrediction,
    id_field="prediction_id",
    forms={
        "prediction_id": Form.TEXT,
        **_FIRST,
        "current_state": LifecycleState,
        "predicted_failure_state": LifecycleState,
        "failure_type": Form.TEXT,
        "time_to_failure": Form.REAL,
        "probability": Form.REAL,
        "confidence": PredictionConfidence,
        "contributing_factors": Form.JSON,
        "recommended_mitigations": Form.JSON,
        "checkpoint_id": Form.TEXT,
        "horizon_seconds": Form.REAL,
        "time_to_failure_low": Form.REAL,
        "time_to_failure_high": Form.REAL,
        "calibrated": Form.FLAG,
        "model_version": Form.TEXT,
        "outcome": PredictionOutcome,
        "resolved_at": Form.REAL,
        "metadata": Form.JSON,
    },
    filters=("failure_type", "outcome"),
    scrubbed=("contributing_factors", "metadata"),
)

ATTEMPTS = RareKind(
    table="mitigation_attempts",
    record_type=MitigationAttempt,
    id_field="attempt_id",
    forms={
        "attempt_id": Form.TEXT,
        **_FIRST,
        "initial_state": LifecycleState,
        "initial_metrics": Form.JSON,
        "error_context": Form.JSON,
        "strategy_name": Form.TEXT,
        "interventions_executed": Form.JSON,
        "execution_time": Form.REAL,
        "outcome": MitigationOutcome,
        "final_state": LifecycleState,
        "final_metrics": Form.JSON,
        "side_effects_observed": Form.JSON,
        "failure_pattern_id": Form.TEXT,
        "prediction_id": Form.TEXT,
        "confidence_score": Form.REAL,
        "status": AttemptStatus,
        "propensity": Form.REAL,
        "policy": Form.TEXT,
        "reward": Form.REAL,
        "mode": Form.TEXT,
        "approved_by": Form.TEXT,
        "metadata": Form.JSON,
    },
    filters=("strategy_name", "outcome", "status"),
    scrubbed=("error_context", "interventions_executed", "side_effects_observed", "metadata"),
)

ALERTS = RareKind(
    table="alerts",
    record_type=Alert,
    id_field="alert_id",
    forms={
        "alert_id": Form.TEXT,
        **_FIRST,
        "name": Form.TEXT,
        "state": AlertState,
        "severity": Severity,
        "message": Form.TEXT,
        "condition": Form.TEXT,
        "labels": Form.JSON,
        "values": Form.JSON,
        "fired_at": Form.REAL,
        "resolved_at": Form.REAL,
        "intervention": Form.TEXT,
        "checkpoint_id": Form.TEXT,
        "metadata": Form.JSON,
    },
    filters=("name", "state"),
    scrubbed=("message", "metadata"),
)

REQUESTS = RareKind(
    table="requests",
    record_type=RequestSummary,
    id_field="request_id",
    forms={
        "request_id": Form.TEXT,
        **_FIRST,
        "model": Form.TEXT,
        "finish_reason": Form.TEXT,
        "prompt_tokens": Form.WHOLE,
        "output_tokens": Form.WHOLE,
        "cached_tokens": Form.WHOLE,
        "queue_seconds": Form.REAL,
        "time_to_first_token_seconds": Form.REAL,
        "inter_token_seconds": Form.REAL,
        "longest_gap_seconds": Form.REAL,
        "duration_seconds": Form.REAL,
        "preemptions": Form.WHOLE,
        "error": Form.TEXT,
        "met_objective": Form.FLAG,
        "engine": Form.WHOLE,
        "metadata": Form.JSON,
    },
    scrubbed=("error", "metadata"),
    is_rare=False,
)

PATTERNS = RareKind(
    table="failure_patterns",
    record_type=FailurePattern,
    id_field="pattern_id",
    forms={
        "pattern_id": Form.TEXT,
        **_FIRST,
        "failure_type": Form.TEXT,
        "description": Form.TEXT,
        "states": Form.JSON,
        "error_signatures": Form.JSON,
        "metric_conditions": Form.JSON,
        "occurrence_count": Form.WHOLE,
        "false_alarm_count": Form.WHOLE,
        "last_seen": Form.REAL,
        "mean_lead_seconds": Form.REAL,
        "metadata": Form.JSON,
    },
    filters=("failure_type",),
    scrubbed=("description", "error_signatures", "metadata"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRecord:
    """One experience of a learner; see ``PersistenceManager.save_learning_data``."""

    timestamp: float
    learning_type: str
    state_context: Any
    action_taken: Any
    reward: float | None
    target: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    learning_id: str | None = None


LEARNING = RareKind(
    table="learning_data",
    record_type=LearningRecord,
    id_field="learning_id",
    forms={
        "learning_id": Form.TEXT,
        **_FIRST,
        "learning_type": Form.TEXT,
        "state_context": Form.PACKED,
        "action_taken": Form.PACKED,
        "reward": Form.REAL,
        "metadata": Form.PACKED,
    },
    filters=("learning_type",),
    scrubbed=("metadata",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHappyPath:
    """A happy path whose checkpoints are rows of :data:`CHECKPOINTS`, redacted."""

    path_id: str
    name: str
    checkpoints: list[dict[str, Any]]
    metrics_profile: dict[str, Any]
    guardrails: list[str]
    success_count: int
    failure_count: int
    timestamp: float
    updated_at: float
    target: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, path: HappyPath, on_unknown: UnknownObject = None) -> StoredHappyPath:
        """The stored form of a happy path.

        Args:
            path: The happy path.
            on_unknown: As in :meth:`RareKind.to_row`.

        Raises:
            ValueNotStorableError: When a checkpoint cannot be stored.
        """
        return cls(
            path_id=path.path_id,
            name=path.name,
            checkpoints=[CHECKPOINTS.to_row(checkpoint, on_unknown) for checkpoint in path.checkpoints],
            metrics_profile=path.metrics_profile,
            guardrails=path.guardrails,
            success_count=path.success_count,
            failure_count=path.failure_count,
            timestamp=path.timestamp,
            updated_at=path.updated_at,
            target=path.target,
            metadata=path.metadata,
        )

    def restored(self) -> HappyPath:
        """The happy path.

        Raises:
            StoreDamagedError: When a checkpoint is not what was stored.
        """
        return HappyPath(
            path_id=self.path_id,
            name=self.name,
            checkpoints=[CHECKPOINTS.from_row(row) for row in self.checkpoints],
            metrics_profile=self.metrics_profile,
            guardrails=self.guardrails,
            success_count=self.success_count,
            failure_count=self.failure_count,
            timestamp=self.timestamp,
            updated_at=self.updated_at,
            target=self.target,
            metadata=self.metadata,
        )


def _state_at(position: int) -> Any:
    def state(path: StoredHappyPath) -> str | None:
        return str(path.checkpoints[position]["state"]) if path.checkpoints else None

    return state


HAPPY_PATHS = RareKind(
    table="happy_paths",
    record_type=StoredHappyPath,
    id_field="path_id",
    forms={
        "path_id": Form.TEXT,
        **_FIRST,
        "name": Form.TEXT,
        "checkpoints": Form.JSON,
        "metrics_profile": Form.JSON,
        "guardrails": Form.JSON,
        "success_count": Form.WHOLE,
        "failure_count": Form.WHOLE,
        "updated_at": Form.REAL,
        "metadata": Form.JSON,
    },
    filters=("start_state", "end_state"),
    scrubbed=("metadata",),
    derived={"start_state": _state_at(0), "end_state": _state_at(-1)},
)

ALL_KINDS: tuple[RareKind[Any], ...] = (
    CHECKPOINTS,
    EVENTS,
    PREDICTIONS,
    PATTERNS,
    ATTEMPTS,
    ALERTS,
    REQUESTS,
    HAPPY_PATHS,
    LEARNING,
)
"""Every kind of record; a table of ``schema_records`` that is not named here has its own code."""
