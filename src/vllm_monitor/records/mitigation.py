"""Attempts to mitigate a failure: the intent before the action, the outcome after it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any

from vllm_monitor.records.lifecycle import LifecycleState

__all__ = ["AttemptStatus", "MitigationAttempt", "MitigationOutcome"]


class AttemptStatus(StrEnum):
    """How far an attempt has come.

    ``ABANDONED``: the monitor ended before it knew the outcome; what was begun may have been done.
    """

    INTENDED = "intended"
    ACTING = "acting"
    SETTLED = "settled"
    ABANDONED = "abandoned"


class MitigationOutcome(StrEnum):
    """What an attempt achieved, as verified afterwards. ``NOT_APPLICABLE`` is no evidence either way."""

    SUCCESS = "success"
    PARTIAL_SUCCESS = "partial_success"
    FAILURE = "failure"
    MADE_WORSE = "made_worse"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True)
class MitigationAttempt:
    """One use of a strategy against a failure.

    Args:
        attempt_id: Unique across stores; saving the same id again replaces what was saved.
        timestamp: Unix seconds of the intent.
        initial_state: The target's state before.
        initial_metrics: Canonical metric values before.
        error_context: What was wrong, in words.
        strategy_name: The strategy.
        interventions_executed: What was done, in order.
        execution_time: Seconds it took.
        outcome: What it achieved; ``None`` until it is settled.
        final_state: The state after.
        final_metrics: Canonical metric values after.
        side_effects_observed: What else happened.
        failure_pattern_id: The pattern that it answered.
        prediction_id: The prediction that it answered.
        confidence_score: How sure the choice was, 0 to 1.
        status: How far it has come.
        propensity: Probability with which the policy chose this strategy, 0 to 1.
        policy: What chose it.
        reward: What was learned from it.
        mode: The monitor's mode (``observe``, ``suggest``, ``act`` ...) at that moment.
        approved_by: Who approved it.
        target: The server's URL.
        metadata: Anything else.
    """

    attempt_id: str
    timestamp: float
    initial_state: LifecycleState
    initial_metrics: dict[str, float]
    error_context: list[str]
    strategy_name: str
    interventions_executed: list[str]
    execution_time: float | None = None
    outcome: MitigationOutcome | None = None
    final_state: LifecycleState | None = None
    final_metrics: dict[str, float] | None = None
    side_effects_observed: list[str] = field(default_factory=list)
    failure_pattern_id: str | None = None
    prediction_id: str | None = None
    confidence_score: float = 0.0
    _: KW_ONLY
    status: AttemptStatus = AttemptStatus.SETTLED
    propensity: float | None = None
    policy: str = ""
    reward: float | None = None
    mode: str = ""
    approved_by: str = ""
    target: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
