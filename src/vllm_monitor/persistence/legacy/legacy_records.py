"""Rows of the earlier design as records of this one.

The earlier design named states and outcomes by the names of their members, gave most records no id, and packed
dictionaries as base64 of compressed JSON. Ids are made from what does not change in a row, so that importing the
same file again finds the same records. Columns that mean nothing here stay in ``metadata["legacy"]``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from vllm_monitor.persistence.legacy.legacy_files import NotUnderstoodError, unpacked
from vllm_monitor.persistence.legacy.legacy_values import (
    Columns,
    confidence_of,
    content_id,
    count_of,
    dict_of,
    list_of,
    member_of,
    moment_of,
    number_of,
    optional_member_of,
    outcome_of,
    rest_of,
    text_of,
    time_of,
)
from vllm_monitor.persistence.records.rare_kinds import (
    ATTEMPTS,
    CHECKPOINTS,
    HAPPY_PATHS,
    LEARNING,
    PREDICTIONS,
    LearningRecord,
    StoredHappyPath,
)
from vllm_monitor.persistence.records.rare_rows import RareKind, Row
from vllm_monitor.records import (
    FailurePrediction,
    HappyPath,
    LifecycleState,
    MitigationAttempt,
    MitigationOutcome,
    StateCheckpoint,
    StateTransition,
)

__all__ = ["LegacyRecords"]

_MOST_REMEMBERED = 200_000
_CHECKPOINT_COLUMNS = frozenset(
    [
        "timestamp",
        "state",
        "previous_state",
        "transition_type",
        "arguments",
        "environment",
        "hardware_state",
        "metrics",
        "guardrail_violations",
        "interventions",
        "error_context",
    ]
)
_PREDICTION_COLUMNS = frozenset(
    [
        "timestamp",
        "checkpoint_id",
        "failure_type",
        "probability",
        "confidence",
        "time_to_failure",
        "contributing_factors",
        "preventive_actions",
        "actual_outcome",
    ]
)
_ATTEMPT_COLUMNS = frozenset(
    [
        "attempt_id",
        "timestamp",
        "initial_state",
        "initial_metrics",
        "error_context",
        "strategy_name",
        "interventions_executed",
        "execution_time",
        "outcome",
        "final_state",
        "final_metrics",
        "side_effects",
    ]
)
_HAPPY_PATH_COLUMNS = frozenset(
    [
        "path_id",
        "name",
        "start_state",
        "end_state",
        "checkpoints",
        "metrics_profile",
        "guardrails",
        "success_count",
        "failure_count",
        "updated_at",
    ]
)
_LEARNING_COLUMNS = frozenset(["timestamp", "learning_type", "state_context", "action_taken", "reward", "metadata"])


class LegacyRecords:
    """Turns rows into rows of ours; remembers the checkpoints it saw, for the predictions that refer to them."""

    def __init__(self) -> None:
        self._checkpoints: dict[int, tuple[str, LifecycleState]] = {}
        self._states: list[tuple[float, LifecycleState]] = []
        self._sorted = True
        self.tables: Mapping[str, tuple[RareKind[Any], Callable[[Columns], Row]]] = {
            "checkpoints": (CHECKPOINTS, self.checkpoint),
            "predictions": (PREDICTIONS, self.prediction),
            "mitigation_attempts": (ATTEMPTS, self.attempt),
            "happy_paths": (HAPPY_PATHS, self.happy_path),
            "learning_data": (LEARNING, self.learning),
        }

    def checkpoint(self, row: Columns) -> Row:
        """A row of ``checkpoints``. Raises NotUnderstoodError, as all of these do."""
        timestamp, state = time_of(row), member_of(LifecycleState, row.get("state"))
        checkpoint_id = content_id("checkpoint", row)
        record = StateCheckpoint(
            timestamp,
            state,
            optional_member_of(LifecycleState, row.get("previous_state")),
            optional_member_of(StateTransition, row.get("transition_type")),
            dict_of(row.get("arguments")),
            dict_of(row.get("environment")),
            dict_of(row.get("hardware_state")),
            error_context=dict_of(row.get("error_context")) or None,
            interventions_triggered=list_of(row.get("interventions")),
            guardrails_enforced=list_of(row.get("guardrail_violations")),
            metrics=dict_of(row.get("metrics")),
            metadata=rest_of(row, _CHECKPOINT_COLUMNS),
            checkpoint_id=checkpoint_id,
        )
        self._remember(row.get("rowid"), checkpoint_id, timestamp, state)
        return CHECKPOINTS.to_row(record, repr)

    def prediction(self, row: Columns) -> Row:
        """A row of ``predictions``; its state is that of its checkpoint, or of the last one before it."""
        timestamp = time_of(row)
        metadata = rest_of(row, _PREDICTION_COLUMNS)
        checkpoint_id, state = self._checkpoints.get(row.get("checkpoint_id") or 0, (None, None))
        if state is None:
            state = self._state_at(timestamp)
            metadata.setdefault("legacy", {})["current_state"] = "assumed"
        outcome = outcome_of(row.get("actual_outcome"))
        if row.get("actual_outcome") is not None:
            metadata.setdefault("legacy", {})["actual_outcome"] = row["actual_outcome"]
        probability = number_of(row.get("probability"))
        fixed = {name: value for name, value in row.items() if name != "actual_outcome"}
        record = FailurePrediction(
            prediction_id=content_id("prediction", fixed),
            timestamp=timestamp,
            current_state=state,
            predicted_failure_state=None,
            failure_type=text_of(row.get("failure_type"), "failure_type"),
            time_to_failure=math.nan if row.get("time_to_failure") is None else number_of(row["time_to_failure"]),
            probability=probability,
            confidence=confidence_of(row.get("confidence"), probability),
            contributing_factors=list_of(row.get("contributing_factors")),
            recommended_mitigations=list_of(row.get("preventive_actions")),
            checkpoint_id=checkpoint_id,
            outcome=outcome,
            metadata=metadata,
        )
        return PREDICTIONS.to_row(record, repr)

    def attempt(self, row: Columns) -> Row:
        """A row of ``mitigation_attempts``."""
        final_metrics = unpacked(row.get("final_metrics"))
        record = MitigationAttempt(
            attempt_id=text_of(row.get("attempt_id"), "attempt_id"),
            timestamp=time_of(row),
            initial_state=member_of(LifecycleState, row.get("initial_state")),
            initial_metrics=dict_of(row.get("initial_metrics")),
            error_context=list_of(row.get("error_context")),
            strategy_name=text_of(row.get("strategy_name"), "strategy_name"),
            interventions_executed=list_of(row.get("interventions_executed")),
            execution_time=None if row.get("execution_time") is None else number_of(row["execution_time"]),
            outcome=member_of(MitigationOutcome, row.get("outcome")),
            final_state=optional_member_of(LifecycleState, row.get("final_state")),
            final_metrics=final_metrics if isinstance(final_metrics, dict) else None,
            side_effects_observed=list_of(row.get("side_effects")),
            metadata=rest_of(row, _ATTEMPT_COLUMNS),
        )
        return ATTEMPTS.to_row(record, repr)

    def happy_path(self, row: Columns) -> Row:
        """A row of ``happy_paths``, or an entry of ``happy_paths.json``."""
        path_id = text_of(row.get("path_id"), "path_id")
        metadata = rest_of(row, _HAPPY_PATH_COLUMNS)
        steps = list_of(row.get("checkpoints"))
        updated_at = moment_of(row.get("updated_at"))
        record = HappyPath(
            path_id=path_id,
            name=text_of(row.get("name", path_id), "name"),
            checkpoints=[_step(path_id, number, step) for number, step in enumerate(steps)],
            metrics_profile=dict_of(row.get("metrics_profile")),
            guardrails=list_of(row.get("guardrails")),
            success_count=count_of(row.get("success_count")),
            failure_count=count_of(row.get("failure_count")),
            timestamp=moment_of(row.get("created_at")) or updated_at,
            updated_at=updated_at,
            metadata=metadata,
        )
        return HAPPY_PATHS.to_row(StoredHappyPath.of(record, repr), repr)

    def learning(self, row: Columns) -> Row:
        """A row of ``learning_data``."""
        metadata = unpacked(row.get("metadata"))
        record = LearningRecord(
            timestamp=time_of(row),
            learning_type=text_of(row.get("learning_type"), "learning_type"),
            state_context=unpacked(row.get("state_context")),
            action_taken=row.get("action_taken"),
            reward=None if row.get("reward") is None else number_of(row["reward"]),
            metadata={**(metadata if isinstance(metadata, dict) else {}), **rest_of(row, _LEARNING_COLUMNS)},
            learning_id=content_id("learning", row),
        )
        return LEARNING.to_row(record, repr)

    def _remember(self, number: Any, checkpoint_id: str, timestamp: float, state: LifecycleState) -> None:
        if len(self._states) < _MOST_REMEMBERED:
            self._states.append((timestamp, state))
            self._sorted = False
            if isinstance(number, int):
                self._checkpoints[number] = (checkpoint_id, state)

    def _state_at(self, timestamp: float) -> LifecycleState:
        """The state of the last checkpoint before a moment; serving, when there is none, for it was predicted in."""
        if not self._sorted:
            self._states.sort(key=lambda one: one[0])
            self._sorted = True
        position = bisect_right(self._states, timestamp, key=lambda one: one[0])
        return self._states[position - 1][1] if position else LifecycleState.SERVING


def _step(path_id: str, number: int, step: Any) -> StateCheckpoint:
    if not isinstance(step, dict):
        raise NotUnderstoodError("a step of a happy path is none")
    metrics = step.get("metrics")
    return StateCheckpoint(
        time_of(step),
        member_of(LifecycleState, step.get("state")),
        None,
        None,
        {},
        {},
        {},
        metrics=metrics if isinstance(metrics, dict) else {},
        checkpoint_id=content_id("step", {"path_id": path_id, "number": number}),
    )
