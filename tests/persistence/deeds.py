"""What the endurance tests do to a store, and how they find out whether it is all there.

Everything saved is a function of a number, so that nobody needs to remember what was saved: a series of scrapes and
single samples, and one deed for every kind of rare record.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import RecordNotFoundError
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import (
    Alert,
    AlertState,
    AttemptStatus,
    Event,
    FailurePattern,
    FailurePrediction,
    GuardrailPolicy,
    Layout,
    LifecycleState,
    MetricKind,
    MitigationAttempt,
    MitigationOutcome,
    PluginRecord,
    PredictionConfidence,
    Series,
    StateCheckpoint,
    StrategyRecord,
)

__all__ = ["DEEDS", "Deed", "check_samples", "check_values", "save_samples"]

# A series comes and goes every 37 scrapes, so that blocks are made of changing layouts.
_NARROW = Layout(
    [Series("a_total", (), MetricKind.COUNTER), Series("gauge", (), MetricKind.GAUGE), Series("odd", (("n", "1"),))]
)
_WIDE = Layout([*_NARROW.series, Series("sometimes", (), MetricKind.GAUGE)])
_NAMES = ("a_total", "gauge", "odd", "sometimes", "mine")
_NAN_WITH_PAYLOAD = float(np.array([0x7FF8_0000_DEAD_BEEF], np.uint64).view(np.float64)[0])


def _is_wide(number: int) -> bool:
    return number // 37 % 2 == 1


def _odd(number: int) -> float:
    """A value that a careless codec spoils: NaN with a payload, infinities, minus zero."""
    hostile = (_NAN_WITH_PAYLOAD, float("inf"), float("-inf"), -0.0, 5e-324)
    return hostile[number % len(hostile)] if number % 11 == 0 else number * 0.1


def _value(name: str, number: int) -> float:
    if name == "a_total" or name == "mine":
        return float(number)
    if name == "gauge":
        return (number * 7919 % 1_000_003) / 7
    return _odd(number) if name == "odd" else -float(number)


def save_samples(store: PersistenceManager, target: str, number: int, base: float) -> None:
    """Save scrape ``number`` (from 1) of a target and one single sample, at ``base + number``."""
    layout = _WIDE if _is_wide(number) else _NARROW
    values = array("d", [_value(series.name, number) for series in layout.series])
    store.save_scrape(layout, values, timestamp=base + number, target=target)
    metadata = {"n": number} if number % 10 == 0 else None
    store.save_metric("custom", "mine", number, {"kind": "single"}, metadata, timestamp=base + number, target=target)


def check_values(name: str, times_ms: NDArray[np.int64], values: NDArray[np.float64], base: float) -> list[int]:
    """Check some samples of a series to the bit; the numbers they are of."""
    numbers = ((times_ms - round(base * 1000)) // 1000).tolist()
    assert (times_ms == np.array([round((base + number) * 1000) for number in numbers], np.int64)).all(), name
    expected = np.array([_value(name, number) for number in numbers], np.float64)
    wrong = np.flatnonzero(values.view(np.uint64) != expected.view(np.uint64))
    assert not len(wrong), (name, [(numbers[at], values[at], expected[at]) for at in wrong[:5]])
    return [int(number) for number in numbers]


def check_samples(store: PersistenceManager, target: str, base: float, at_least: int) -> None:
    """Everything up to a number is there, in order, once, to the bit; what came after it without a gap."""
    for name in _NAMES:
        found = store.query_range(name, target=target)
        assert len(found) <= 1, (name, len(found))
        numbers = check_values(name, found[0].timestamps_ms, found[0].values, base) if found else []
        last = max(at_least, numbers[-1] if numbers else 0)
        expected = [number for number in range(1, last + 1) if name != "sometimes" or _is_wide(number)]
        assert numbers == expected, (
            name,
            target,
            at_least,
            len(numbers),
            len(expected),
            _difference(numbers, expected),
        )


def _difference(numbers: list[int], expected: list[int]) -> str:
    missing, surplus = sorted(set(expected) - set(numbers)), sorted(set(numbers) - set(expected))
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    return f"missing {missing[:9]}, surplus {surplus[:9]}, twice {twice[:9]}, sorted {numbers == sorted(numbers)}"


# --- rare records --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deed:
    """One kind of rare record.

    Args:
        do: Save the one with a number; it is durable when this returns.
        found: The numbers that are in the store.
        is_latest: Each replaces the one before it: ``found`` is the newest number alone.
    """

    do: Callable[[PersistenceManager, str, int], object]
    found: Callable[[PersistenceManager, str], set[int]]
    is_latest: bool = False

    def check(self, store: PersistenceManager, label: str, acknowledged: set[int]) -> None:
        """Nothing that was acknowledged is missing."""
        found = self.found(store, label)
        if self.is_latest:
            assert not acknowledged or (found and max(found) >= max(acknowledged)), (found, max(acknowledged))
        else:
            assert acknowledged <= found, sorted(acknowledged - found)


def _checkpoint(label: str, number: int) -> StateCheckpoint:
    environment = {"NUMBER": str(number)}
    return StateCheckpoint(time.time(), LifecycleState.READY, None, None, {"n": number}, environment, {}, target=label)


def _found_checkpoints(store: PersistenceManager, label: str) -> set[int]:
    found = store.get_checkpoints(target=label, limit=None)
    numbers = {one.arguments["n"] for one in found}
    assert len(numbers) == len(found)
    return numbers


def _save_event(store: PersistenceManager, label: str, number: int) -> None:
    store.save_event(
        Event(timestamp=time.time(), event_type="e", message=f"{number}", data={"n": number}, target=label)
    )


def _found_events(store: PersistenceManager, label: str) -> set[int]:
    found = store.get_events("e", target=label, limit=None)
    assert len({one.data["n"] for one in found}) == len(found)
    return {int(one.message) for one in found}


def _save_alert(store: PersistenceManager, label: str, number: int) -> None:
    name = f"{label}-{number}"
    for state in (AlertState.PENDING, AlertState.FIRING):
        alert = Alert(timestamp=time.time(), name=name, state=state, values={"n": number}, target=label, alert_id=name)
        store.save_alert(alert)


def _found_alerts(store: PersistenceManager, label: str) -> set[int]:
    found = store.get_alerts(target=label, limit=None)
    return {int(one.values["n"]) for one in found if one.state is AlertState.FIRING}


def _save_prediction(store: PersistenceManager, label: str, number: int) -> None:
    state, sure = LifecycleState.SERVING, PredictionConfidence.HIGH
    prediction = FailurePrediction(
        f"{label}-{number}", time.time(), state, None, "engine_stall", float(number), 0.7, sure, [], [], target=label
    )
    store.save_prediction(prediction)
    store.update_prediction_outcome(prediction.prediction_id, "happened")


def _found_predictions(store: PersistenceManager, label: str) -> set[int]:
    found = store.get_predictions(target=label, limit=None)
    return {int(one.time_to_failure) for one in found if one.outcome.name == "HAPPENED"}


def _save_attempt(store: PersistenceManager, label: str, number: int) -> None:
    def attempt(status: AttemptStatus, outcome: MitigationOutcome | None) -> MitigationAttempt:
        state, name = LifecycleState.DEGRADED, f"{label}-{number}"
        return MitigationAttempt(
            name, time.time(), state, {"n": number}, [], "restart", [], outcome=outcome, status=status, target=label
        )

    store.save_mitigation_attempt(attempt(AttemptStatus.INTENDED, None))
    store.save_mitigation_attempt(attempt(AttemptStatus.SETTLED, MitigationOutcome.SUCCESS))


def _found_attempts(store: PersistenceManager, label: str) -> set[int]:
    found = store.get_mitigation_history(target=label, limit=None)
    return {int(one.initial_metrics["n"]) for one in found if one.outcome is MitigationOutcome.SUCCESS}


def _save_learning(store: PersistenceManager, label: str, number: int) -> None:
    store.save_learning_data("bandit", {"label": label}, "restart", float(number), {"n": number}, target=label)


def _found_learning(store: PersistenceManager, label: str) -> set[int]:
    found = store.get_learning_data(target=label, limit=None)
    assert len({one["metadata"]["n"] for one in found}) == len(found)
    return {int(one["reward"]) for one in found}


def _save_pattern(store: PersistenceManager, label: str, number: int) -> None:
    name = f"{label}-{number}"
    pattern = FailurePattern(
        timestamp=time.time(), failure_type="engine_stall", occurrence_count=number, target=label, pattern_id=name
    )
    store.save_failure_pattern(pattern)


def _found_patterns(store: PersistenceManager, label: str) -> set[int]:
    return {one.occurrence_count for one in store.get_failure_patterns(target=label, limit=None)}


def _count_happy_path(store: PersistenceManager, label: str, number: int) -> None:
    try:
        store.update_happy_path_stats(label, success=True)
    except RecordNotFoundError:
        store.save_happy_path(label, "a path", [_checkpoint(label, 1)], {"ttft": 0.1}, ["g"], target=label)
        store.update_happy_path_stats(label, success=True)


def _counted_happy_paths(store: PersistenceManager, label: str) -> set[int]:
    return {one.success_count for one in store.get_happy_paths(target=label) if one.path_id == label}


def _save_guardrail(store: PersistenceManager, label: str, number: int) -> None:
    store.save_guardrails([GuardrailPolicy(f"{label}-guardrail", str(number), "kv_cache_usage_ratio > 0.9")])


def _found_guardrails(store: PersistenceManager, label: str) -> set[int]:
    return {int(one.description) for one in store.load_guardrails() if one.name == f"{label}-guardrail"}


def _save_plugin(store: PersistenceManager, label: str, number: int) -> None:
    name = f"{label}-plugin-{number}"
    store.save_plugins({name: PluginRecord(name, "collector", f"VALUE = {number}")})


def _found_plugins(store: PersistenceManager, label: str) -> set[int]:
    found = [one for name, one in store.load_plugins().items() if name.startswith(f"{label}-plugin-")]
    return {int(one.source.removeprefix("VALUE = ")) for one in found}


def _save_strategy(store: PersistenceManager, label: str, number: int) -> None:
    name = f"{label}-strategy"
    store.save_strategies({name: StrategyRecord(name, attempt_count=number)})


def _found_strategies(store: PersistenceManager, label: str) -> set[int]:
    return {one.attempt_count for name, one in store.load_strategies().items() if name == f"{label}-strategy"}


def _save_model(store: PersistenceManager, label: str, number: int) -> None:
    weights = np.arange(2_000, dtype=np.float64) + number
    store.save_model(f"{label}-model", {"n": number, "weights": weights}, {"n": number})


def _found_models(store: PersistenceManager, label: str) -> set[int]:
    try:
        data, metadata = store.load_model(f"{label}-model")
    except RecordNotFoundError:
        return set()
    assert data["n"] == metadata["n"]
    assert (data["weights"] == np.arange(2_000, dtype=np.float64) + data["n"]).all()
    return {int(data["n"])}


DEEDS: dict[str, Deed] = {
    "checkpoint": Deed(lambda store, label, n: store.save_checkpoint(_checkpoint(label, n)), _found_checkpoints),
    "event": Deed(_save_event, _found_events),
    "alert": Deed(_save_alert, _found_alerts),
    "prediction": Deed(_save_prediction, _found_predictions),
    "attempt": Deed(_save_attempt, _found_attempts),
    "learning": Deed(_save_learning, _found_learning),
    "pattern": Deed(_save_pattern, _found_patterns),
    "happy path": Deed(_count_happy_path, _counted_happy_paths, is_latest=True),
    "guardrail": Deed(_save_guardrail, _found_guardrails, is_latest=True),
    "plugin": Deed(_save_plugin, _found_plugins),
    "strategy": Deed(_save_strategy, _found_strategies, is_latest=True),
    "model": Deed(_save_model, _found_models, is_latest=True),
}
"""Name to deed. A happy path counts: its number is how often it was done."""
