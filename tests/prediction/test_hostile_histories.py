"""Stores and predictors that hold nonsense: what can be read is read, and nothing else is lost for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.prediction.made_up import prediction
from tests.report.histories import failed, predicted

from vllm_monitor.core import TargetPipeline
from vllm_monitor.core.prediction_backtest import stored_score
from vllm_monitor.core.stored_story import read_story
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.failures import event_of, stored_episodes
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.predictive_failure_detection import PredictionSettings, PredictiveFailureDetector
from vllm_monitor.predictive_failure_detection.target_predictor import TargetPredictor
from vllm_monitor.records import (
    Event,
    FailurePrediction,
    HealthObservation,
    LifecycleState,
    PredictionOutcome,
    StateCheckpoint,
)
from vllm_monitor.report import score_report

TARGET = "http://a:8000"
NOW = 1_790_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store"), synchronous=True) as opened:
        yield opened


def looked(store: PersistenceManager, start: float, end: float) -> None:
    """A server that was looked at each second, and was well."""
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker(store), store=store)
    for second in range(int(end - start)):
        at = start + second
        pipeline.step(at + 0.01, [HealthObservation(target=TARGET, timestamp=at, latency_seconds=0.001, status=200)])


def resumed(store: PersistenceManager) -> TargetPipeline:
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker(store), store=store)
    pipeline.resume(NOW)
    for second in range(3):
        pipeline.step(NOW + second, [])
    return pipeline


def outcome_of(store: PersistenceManager, name: str) -> PredictionOutcome:
    return next(one.outcome for one in store.get_predictions(limit=None) if one.prediction_id == name)


@pytest.mark.parametrize("horizon", [90_000.0, 3e7, math.nan, math.inf, -5.0, 0.0])
def test_another_horizon_does_not_hide_what_was_seen_of_ours(store: PersistenceManager, horizon: float) -> None:
    looked(store, NOW - 500.0, NOW - 10.0)
    store.save_prediction(predicted(NOW - 450.0, PredictionOutcome.OPEN, name="ours", target=TARGET))
    store.save_prediction(
        predicted(NOW - 460.0, PredictionOutcome.OPEN, name="odd", kind="disk_full", target=TARGET, horizon=horizon)
    )
    resumed(store)
    assert outcome_of(store, "ours") is PredictionOutcome.DID_NOT_HAPPEN


@pytest.mark.parametrize("wild", [10**400, "soon", None, math.nan, math.inf, True])
def test_an_event_that_makes_no_sense_hides_no_other(store: PersistenceManager, wild: Any) -> None:
    good = event_of(failed(NOW - 100.0, target=TARGET))
    store.save_event(good)
    odd = {**good.data, "failure_type": "engine_stall", "began_at": wild}
    store.save_event(Event(timestamp=NOW - 50.0, event_type=good.event_type, message="", target=TARGET, data=odd))
    assert [one.failure_type for one in stored_episodes(store, target=TARGET)] == ["kv_exhaustion"]
    read_story(store, TARGET, now=NOW, longest_hole_seconds=30.0)
    assert score_report(store, now=NOW).scores.overall.failures == 1


def test_predictions_of_plugins_count_for_nothing_of_ours(store: PersistenceManager) -> None:
    for number in range(48):
        plugin = predicted(NOW - 1_000.0 + number, name=f"{number}", target=TARGET)
        store.save_prediction(FailurePrediction(**{**_fields(plugin), "metadata": {"plugin": "p"}}))
    detector = PredictiveFailureDetector(persistence_manager=store)
    detector.resume(TARGET)
    predictor = detector._predictor(TARGET)
    assert predictor.resolved == {}
    assert (
        not [predictor._guard.allows("kv_exhaustion", calls=True, now=NOW + 3.0 * step) for step in range(2)].count(
            False
        )
        > 1
    )


def _fields(one: FailurePrediction) -> dict[str, Any]:
    return {name: getattr(one, name) for name in FailurePrediction.__dataclass_fields__}


def test_a_failure_that_comes_again_and_again_is_foretold_once(store: PersistenceManager) -> None:
    store.save_prediction(predicted(NOW - 290.0, name="one", target=TARGET))
    for number in range(4):
        store.save_event(event_of(failed(NOW - 240.0 + 50.0 * number, target=TARGET)))
    score = stored_score(store, TARGET, NOW - 600.0, NOW)
    assert score.leads() == [50.0]
    report = score_report(store, now=NOW).scores.overall
    assert (report.failures, report.failures_predicted) == (4, 1)


@pytest.mark.parametrize("at", [1e308, -1e308, 4e9])
def test_a_clock_that_was_wrong_once_does_not_stretch_what_was_watched(store: PersistenceManager, at: float) -> None:
    store.save_prediction(predicted(NOW - 290.0, target=TARGET))
    event = event_of(failed(NOW - 200.0, target=TARGET))
    store.save_event(event)
    data = {**event.data, "happened_at": at, "began_at": at}
    store.save_event(Event(timestamp=NOW, event_type=event.event_type, message="", target=TARGET, data=data))
    assert score_report(store, now=NOW).days_watched < 0.1


WILD: list[Any] = [
    None, "text", 10**400, -1, True, math.nan, [], [None], [1e308] * 400, {}, {"a": None}, np.zeros(3),
    np.full(9, 1e308),
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(place for key, one in value.items() for place in places(one, (*path, key)))]
    return [path]


def test_whatever_stands_in_a_state_the_next_look_is_judged() -> None:
    checkpoint_metrics = {"requests_running": 3.0, "kv_cache_usage_ratio": 0.4, "requests_waiting": 0.0}
    detector = PredictiveFailureDetector()
    for second in range(40):
        detector.analyze_checkpoint(checkpoint(NOW + second, checkpoint_metrics))
    good = detector._of_checkpoints[TARGET]
    for place in places(good.state())[1:]:
        for wild in WILD:
            state = good.state()
            inner: Any = state
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = wild
            restored = TargetPredictor(TARGET)
            restored.restore(state)


def checkpoint(at: float, metrics: dict[str, Any]) -> StateCheckpoint:
    return StateCheckpoint(
        at, LifecycleState.PROCESSING_REQUESTS, None, None, {}, {}, {}, metrics=metrics, target=TARGET
    )


@pytest.mark.parametrize("wild", [-1.0, 1e308, -1e308, math.nan, math.inf, 10**400, "many", None, True])
def test_checkpoints_with_figures_that_make_no_sense(wild: Any) -> None:
    names = ("preemptions_per_second", "requests_waiting", "kv_cache_usage_ratio", "time_to_first_token_p95_seconds")
    detector = PredictiveFailureDetector()
    for second in range(40):
        detector.analyze_checkpoint(checkpoint(NOW + second, {"requests_running": 1.0, **dict.fromkeys(names, wild)}))


def test_what_is_not_watched_any_more_is_forgotten() -> None:
    detector = PredictiveFailureDetector()
    for number in range(150):
        one = checkpoint(NOW, {"requests_running": 1.0})
        detector.analyze_checkpoint(StateCheckpoint(**{**_checkpoint_fields(one), "target": f"http://{number}"}))
    assert len(detector._of_checkpoints) == 100
    detector._predictor(TARGET)
    detector.forget(TARGET)
    assert TARGET not in detector._live


def _checkpoint_fields(one: StateCheckpoint) -> dict[str, Any]:
    return {name: getattr(one, name) for name in StateCheckpoint.__dataclass_fields__}


class Wild:
    """A predictor with an answer of its own."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def observe(self, *_: Any) -> Any:
        return self._answer

    def note_resolved(self, *_: Any) -> None: ...

    def note_action(self, *_: Any) -> None: ...


ODD = prediction("kv_exhaustion", NOW)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "soon",
        [None],
        [FailurePrediction(**{**_fields(ODD), "probability": None})],
        [FailurePrediction(**{**_fields(ODD), "timestamp": math.nan})],
        [FailurePrediction(**{**_fields(ODD), "contributing_factors": [1]})],
        [FailurePrediction(**{**_fields(ODD), "contributing_factors": None})],
        [ODD] * 100_000,
    ],
)
def test_an_answer_that_is_none_ends_no_tick(store: PersistenceManager, answer: Any) -> None:
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker(), store=store, predictor=Wild(answer))
    for second in range(3):
        tick = pipeline.step(NOW + second, [])
    assert len(tick.expected) <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"daily_budget": -1},
        {"least_probability": 0.0},
        {"least_probability": math.nan},
        {"hold_down_seconds": -1.0},
        {"ttft_objective_seconds": math.nan},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        PredictionSettings(**wrong)
