"""Records of every kind with values that are hard to store, for property tests."""

from __future__ import annotations

import dataclasses
import enum
import math
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from vllm_monitor.persistence import PersistenceManager
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


class Foreign(enum.Enum):
    THING = "thing"
    NUMBER = 7


any_text = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(
    ["", "\0", "\ud800", "json:", "json:\0", "zlib:", "$dict", "null", "ünïcode", "x" * 5000]
)
any_int = st.integers() | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400])
any_float = st.floats() | st.sampled_from([-0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308])
any_numpy = st.sampled_from(
    [np.float64(0.1), np.float32(1.5), np.int64(-3), np.uint64(2**64 - 1), np.bool_(True), np.float64("nan")]
)
any_number = any_float | any_int | any_numpy | st.booleans()
any_scalar = (
    st.none()
    | any_number
    | any_text
    | st.binary(max_size=5)
    | st.just(Path("/models/ünï"))
    | st.sampled_from(Foreign)
    | st.sampled_from(LifecycleState)
    | st.complex_numbers(allow_nan=False)
    | st.datetimes()
)
any_value = st.recursive(
    any_scalar,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(any_text, inner, max_size=2)
        | st.dictionaries(st.integers(), inner, max_size=1)
        | st.frozensets(st.integers() | any_text, max_size=2)
    ),
    max_leaves=5,
)
any_dict = st.dictionaries(any_text, any_value, max_size=2)
any_texts = st.lists(any_text, max_size=2)
metrics = st.dictionaries(any_text, any_number, max_size=2)
times = st.one_of(
    st.floats(-1e12, 1e12),
    st.integers(-(10**9), 10**9),
    st.sampled_from([-0.0, 1e300, np.float64(3.5), 2**53 + 1]),
)
some_id = st.builds(lambda odd, unique: f"{odd}{unique}", any_text, st.uuids())
numbers = st.none() | any_number
plain_names = st.sampled_from(["model", "seed", "ünïcode", "\ud800", "p"])  # that do not sound like secrets


def choice(kind: type[enum.Enum]) -> st.SearchStrategy[Any]:
    """A member, or what does not belong there."""
    return st.sampled_from(kind) | st.none() | any_text


def ids(kind: str) -> st.SearchStrategy[str]:
    """Ids that no other kind has."""
    return some_id.map(lambda odd: f"{odd}-{kind}")


common: dict[str, st.SearchStrategy[Any]] = {"timestamp": times, "target": any_text, "metadata": any_dict}

checkpoints = st.builds(
    StateCheckpoint,
    **common,
    state=choice(LifecycleState),
    previous_state=choice(LifecycleState),
    transition_type=choice(StateTransition),
    arguments=st.dictionaries(plain_names, any_scalar, max_size=2),
    environment=st.dictionaries(st.sampled_from(["HOME", "PATH"]), st.text("abc /:", max_size=9), max_size=2),
    hardware_state=any_dict,
    error_context=st.none() | any_dict,
    interventions_triggered=any_texts,
    guardrails_enforced=any_texts,
    metrics=metrics,
    checkpoint_id=ids("checkpoint"),
    condition=choice(Condition),
    reason=any_text,
)
events = st.builds(
    Event,
    **common,
    event_type=any_text,
    message=any_text,
    severity=choice(Severity),
    data=any_dict,
    event_id=ids("event"),
)
predictions = st.builds(
    FailurePrediction,
    **common,
    prediction_id=ids("prediction"),
    current_state=choice(LifecycleState),
    predicted_failure_state=choice(LifecycleState),
    failure_type=any_text,
    time_to_failure=numbers,
    probability=numbers,
    confidence=choice(PredictionConfidence),
    contributing_factors=any_texts,
    recommended_mitigations=st.lists(any_value, max_size=2),
    checkpoint_id=st.none() | some_id,
    horizon_seconds=numbers,
    time_to_failure_low=numbers,
    time_to_failure_high=numbers,
    calibrated=st.booleans() | numbers,
    model_version=any_text,
    outcome=choice(PredictionOutcome),
    resolved_at=numbers,
)
patterns = st.builds(
    FailurePattern,
    **common,
    pattern_id=ids("pattern"),
    failure_type=any_text,
    description=any_text,
    states=st.lists(st.sampled_from(LifecycleState), max_size=3),
    error_signatures=any_texts,
    metric_conditions=any_dict,
    occurrence_count=any_int | numbers,
    false_alarm_count=any_int | numbers,
    last_seen=numbers,
    mean_lead_seconds=numbers,
)
attempts = st.builds(
    MitigationAttempt,
    **common,
    attempt_id=ids("attempt"),
    initial_state=choice(LifecycleState),
    initial_metrics=metrics,
    error_context=any_texts,
    strategy_name=any_text,
    interventions_executed=any_texts,
    execution_time=numbers,
    outcome=choice(MitigationOutcome),
    final_state=choice(LifecycleState),
    final_metrics=st.none() | metrics,
    side_effects_observed=any_texts,
    failure_pattern_id=st.none() | any_text,
    prediction_id=st.none() | any_text,
    confidence_score=numbers,
    status=choice(AttemptStatus),
    propensity=numbers,
    policy=any_text,
    reward=numbers,
    mode=any_text,
    approved_by=any_text,
)
alerts = st.builds(
    Alert,
    **common,
    alert_id=ids("alert"),
    name=any_text,
    state=choice(AlertState),
    severity=choice(Severity),
    message=any_text,
    condition=any_text,
    labels=st.dictionaries(any_text, any_text, max_size=2),
    values=metrics,
    fired_at=numbers,
    resolved_at=numbers,
    intervention=st.none() | any_text,
    checkpoint_id=st.none() | some_id,
)
requests = st.builds(
    RequestSummary,
    **common,
    request_id=ids("request"),
    model=any_text,
    finish_reason=any_text,
    prompt_tokens=numbers,
    output_tokens=numbers,
    cached_tokens=numbers,
    queue_seconds=numbers,
    time_to_first_token_seconds=numbers,
    inter_token_seconds=numbers,
    longest_gap_seconds=numbers,
    duration_seconds=numbers,
    preemptions=numbers,
    error=any_text,
    met_objective=st.none() | st.booleans() | numbers,
    engine=numbers,
)
happy_paths = st.builds(
    HappyPath,
    path_id=ids("path"),
    name=any_text,
    checkpoints=st.lists(checkpoints, max_size=2),
    metrics_profile=any_dict,
    guardrails=any_texts,
    target=any_text,
    metadata=any_dict,
)
learning = st.fixed_dictionaries(
    {
        **common,
        "learning_type": any_text,
        "state_context": any_value,
        "action_taken": any_value,
        "reward": numbers,
    }
)


def one_of_each() -> st.SearchStrategy[list[Any]]:
    """A list with a record of every kind; learning data are dictionaries without their id."""
    kinds = (checkpoints, events, predictions, patterns, attempts, alerts, requests, happy_paths, learning)
    return st.tuples(*kinds).map(list)


def enqueue(store: PersistenceManager, record: Any) -> str:
    """Queue a record of any kind."""
    if isinstance(record, dict):
        return store.enqueue_learning_data(**record)
    if isinstance(record, HappyPath):
        return store.enqueue_happy_path(
            record.path_id,
            record.name,
            record.checkpoints,
            record.metrics_profile,
            record.guardrails,
            metadata=record.metadata,
            target=record.target,
        )
    verbs: dict[type, Any] = {
        StateCheckpoint: store.enqueue_checkpoint,
        Event: store.enqueue_event,
        FailurePrediction: store.enqueue_prediction,
        FailurePattern: store.enqueue_failure_pattern,
        MitigationAttempt: store.enqueue_mitigation_attempt,
        Alert: store.enqueue_alert,
        RequestSummary: store.save_request_summary,
    }
    return str.__str__(verbs[type(record)](record))


def everything(store: PersistenceManager) -> dict[str, Any]:
    """Every record of a store by its id."""
    return {
        **{str(one.checkpoint_id): one for one in store.get_checkpoints(limit=None)},
        **{str(one.event_id): one for one in store.get_events(limit=None)},
        **{one.prediction_id: one for one in store.get_predictions(limit=None)},
        **{str(one.pattern_id): one for one in store.get_failure_patterns(limit=None)},
        **{one.attempt_id: one for one in store.get_mitigation_history(limit=None)},
        **{str(one.alert_id): one for one in store.get_alerts(limit=None)},
        **{str(one.request_id): one for one in store.get_requests(limit=None)},
        **{one.path_id: one for one in store.get_happy_paths()},
        **{one["learning_id"]: one for one in store.get_learning_data(limit=None)},
    }


def typed(value: Any) -> Any:
    """The value with its type, at every depth; NaN equals NaN, numpy scalars equal the Python number."""
    if isinstance(value, np.generic):
        return typed(value.item())
    if dataclasses.is_dataclass(value):
        fields = [one.name for one in dataclasses.fields(value)]
        if isinstance(value, HappyPath):
            fields.remove("timestamp")  # when it was saved
            fields.remove("updated_at")
        return [typed(getattr(value, name)) for name in fields]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items() if key != "learning_id"]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(typed(item)) for item in value)
    return type(value), repr(value)
