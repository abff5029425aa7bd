"""Of two versions of one record: which is further along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm_monitor.persistence.records.rare_rows import RareKind
from vllm_monitor.records import AlertState, AttemptStatus, PredictionOutcome

__all__ = ["FORWARD_ONLY", "is_further_along"]

_ATTEMPT_RANKS: dict[str, int] = {
    AttemptStatus.INTENDED: 0,
    AttemptStatus.ACTING: 1,
    AttemptStatus.SETTLED: 2,
    AttemptStatus.ABANDONED: 2,
}
_ALERT_RANKS: dict[str, int] = {
    AlertState.INACTIVE: 0,
    AlertState.PENDING: 1,
    AlertState.FIRING: 2,
    AlertState.RESOLVED: 3,
}
_PROGRESS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "mitigation_attempts": lambda row: _ATTEMPT_RANKS.get(row["status"], 0),
    "predictions": lambda row: row["outcome"] != PredictionOutcome.OPEN,
    "alerts": lambda row: _ALERT_RANKS.get(row["state"], 0),
    "happy_paths": lambda row: _or_never(row["updated_at"]),
    "failure_patterns": lambda row: (
        (row["occurrence_count"] or 0) + (row["false_alarm_count"] or 0),
        _or_never(row["last_seen"]),
    ),
}
FORWARD_ONLY = frozenset({"mitigation_attempts", "predictions", "alerts"})
"""Tables of records that pass through stages: saving an earlier one again, late or twice, undoes nothing."""


def is_further_along(kind: RareKind[Any], incoming: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether a row of the same id replaces the one that is here.

    Attempts and alerts by their status, predictions once they are resolved, happy paths when they were updated later,
    failure patterns when they were seen more often, or later. Of two that are equally far along, and of all other
    kinds, the one that is here stays.
    """
    progress = _PROGRESS.get(kind.table)
    return progress is not None and bool(progress(incoming) > progress(stored))


def _or_never(timestamp: float | None) -> float:
    return float("-inf") if timestamp is None else timestamp
