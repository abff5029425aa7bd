"""One hostile record of every kind, and how a store is asked for it."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import (
    Alert,
    AlertState,
    AttemptStatus,
    Condition,
    Event,
    FailurePattern,
    FailurePrediction,
    GuardrailPolicy,
    LifecycleState,
    MitigationAttempt,
    MitigationOutcome,
    PluginRecord,
    PredictionConfidence,
    PredictionOutcome,
    RequestSummary,
    Severity,
    StateCheckpoint,
    StateTransition,
    StrategyRecord,
)

__all__ = ["GUARDRAIL", "HOSTILE", "PLUGIN", "RECORDS", "STRATEGY", "RecordExample", "checkpoint"]

HOSTILE: dict[Any, Any] = {
    "none": None,
    "unicode": "ü \u2028 \U0001f600 \x00 json:",
    "lone surrogate": "\ud800",
    "path": Path("/models/m"),
    "enum": LifecycleState.READY,
    "numbers": [math.nan, math.inf, -math.inf, -0.0, 5e-324, 2**80, True, Decimal("0.10")],
    "empty": [{}, [], "", b"", (), set()],
    "huge": "x" * 20_000,
    "date": dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
    "looks like JSON": '{"a":1}',
    3: {"$key": (1, 2)},
}
"""Values that are easily lost on the way to a disk and back."""


@dataclass(frozen=True)
class RecordExample:
    """A kind of record.

    Args:
        name: Its table.
        id_field: The field with its id.
        make: Makes one with this id, time, target and metadata.
        save: Saves it.
        load: All that there are, by filters.
        passes: Filters that it passes.
        fails: Filters that it does not pass.
    """

    name: str
    id_field: str
    make: Callable[..., Any]
    save: Callable[[PersistenceManager, Any], Any]
    load: Callable[..., list[Any]]
    passes: dict[str, Any]
    fails: dict[str, Any]


def checkpoint(checkpoint_id: str | None, timestamp: float, **fields: Any) -> StateCheckpoint:
    """A checkpoint with something in every field."""
    return StateCheckpoint(
        timestamp,
        LifecycleState.DEGRADED,
        LifecycleState.SERVING,
        StateTransition.OPERATION,
        {"model": "m", "seed": 7, "path": Path("/m")},
        {"HOME": "/home/m"},
        {"gpus": [{"name": "H", "memory_bytes": 2**37}]},
        {"error": "E", "numbers": (1, 2.5)},
        ["pause"],
        ["queue"],
        {"waiting": math.nan, "running": 3.0},
        checkpoint_id=checkpoint_id,
        condition=Condition.SATURATED,
        reason="the queue grows",
        **fields,
    )


def _event(event_id: str | None, timestamp: float, **fields: Any) -> Event:
    return Event(
        timestamp=timestamp,
        event_type="condition_changed",
        message="ü\0",
        severity=Severity.WARNING,
        data={"from": Condition.OK},
        event_id=event_id,
        **fields,
    )


def _prediction(prediction_id: str, timestamp: float, **fields: Any) -> FailurePrediction:
    return FailurePrediction(
        prediction_id,
        timestamp,
        LifecycleState.SERVING,
        LifecycleState.CRITICAL_ERROR,
        "kv_exhaustion",
        math.inf,
        0.75,
        PredictionConfidence.HIGH,
        ["cache grows"],
        ["shed_load", {"name": "restart"}],
        time_to_failure_low=1.5,
        time_to_failure_high=math.nan,
        calibrated=True,
        model_version="v1",
        **fields,
    )


def _attempt(attempt_id: str, timestamp: float, **fields: Any) -> MitigationAttempt:
    return MitigationAttempt(
        attempt_id,
        timestamp,
        LifecycleState.ERROR,
        {"waiting": 1e300},
        ["engine died"],
        "restart",
        ["stop", "start"],
        12.5,
        MitigationOutcome.PARTIAL_SUCCESS,
        LifecycleState.SERVING,
        {"waiting": -0.0},
        ["clients were cut off"],
        confidence_score=0.5,
        propensity=0.25,
        policy="runbook",
        mode="act",
        approved_by="me",
        **fields,
    )


def _alert(alert_id: str | None, timestamp: float, **fields: Any) -> Alert:
    return Alert(
        timestamp=timestamp,
        name="queue",
        state=AlertState.FIRING,
        severity=Severity.CRITICAL,
        labels={"engine": "0"},
        values={"waiting": math.inf},
        fired_at=timestamp,
        alert_id=alert_id,
        **fields,
    )


def _request(request_id: str | None, timestamp: float, **fields: Any) -> RequestSummary:
    return RequestSummary(
        timestamp=timestamp,
        model="m",
        finish_reason="stop",
        prompt_tokens=2**40,
        duration_seconds=0.1,
        met_objective=False,
        request_id=request_id,
        **fields,
    )


def _pattern(pattern_id: str | None, timestamp: float, **fields: Any) -> FailurePattern:
    return FailurePattern(
        timestamp=timestamp,
        failure_type="engine_stall",
        states=[LifecycleState.SERVING, LifecycleState.DEGRADED],
        metric_conditions={"waiting": "> 5"},
        occurrence_count=3,
        mean_lead_seconds=12.0,
        pattern_id=pattern_id,
        **fields,
    )


RECORDS = (
    RecordExample(
        "checkpoints",
        "checkpoint_id",
        checkpoint,
        PersistenceManager.save_checkpoint,
        PersistenceManager.get_checkpoints,
        {"state": LifecycleState.DEGRADED},
        {"state": "ready"},
    ),
    RecordExample(
        "events",
        "event_id",
        _event,
        PersistenceManager.save_event,
        PersistenceManager.get_events,
        {"event_type": "condition_changed"},
        {"event_type": "other"},
    ),
    RecordExample(
        "predictions",
        "prediction_id",
        _prediction,
        PersistenceManager.save_prediction,
        PersistenceManager.get_predictions,
        {"failure_type": "kv_exhaustion", "outcome": PredictionOutcome.OPEN},
        {"failure_type": "engine_stall"},
    ),
    RecordExample(
        "mitigation_attempts",
        "attempt_id",
        _attempt,
        PersistenceManager.save_mitigation_attempt,
        PersistenceManager.get_mitigation_history,
        {"strategy_name": "restart", "outcome": "partial_success", "status": AttemptStatus.SETTLED},
        {"outcome": MitigationOutcome.FAILURE},
    ),
    RecordExample(
        "alerts",
        "alert_id",
        _alert,
        PersistenceManager.save_alert,
        PersistenceManager.get_alerts,
        {"name": "queue", "state": AlertState.FIRING},
        {"state": AlertState.RESOLVED},
    ),
    RecordExample(
        "requests",
        "request_id",
        _request,
        PersistenceManager.save_request_summary,
        PersistenceManager.get_requests,
        {},
        {"target": "http://nowhere"},
    ),
    RecordExample(
        "failure_patterns",
        "pattern_id",
        _pattern,
        PersistenceManager.save_failure_pattern,
        PersistenceManager.get_failure_patterns,
        {"failure_type": "engine_stall"},
        {"failure_type": "engine_death"},
    ),
)
"""Every kind that has a time, an id and filters; happy paths and learning data are saved field by field."""

GUARDRAIL = GuardrailPolicy(
    "queue",
    "the queue is short: ü",
    "requests_waiting < 5",
    {"strategy": "shed_load", "ratio": 0.5},
    "critical",
    enabled=False,
    metadata={"by": ("me", Path("/p"))},
)
PLUGIN = PluginRecord(
    "counter",
    "metric",
    "def run():\n    return 'ü'\n",
    "counts",
    "1.0",
    {"every": 5},
    ["other"],
    metadata={"nan": math.nan},
)
STRATEGY = StrategyRecord(
    "restart",
    "stop and start",
    config={"grace_seconds": 5},
    success_rate=0.5,
    mean_execution_seconds=12.5,
    attempt_count=2,
    outcome_counts={"success": 1, "failure": 1},
    context_performance={"state": {"error": {"success_rate": 1.0}}},
)
