"""The pipeline records failures and settles predictions, also over a restart of the monitor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from tests.core.recordings import DATA
from tests.prediction.made_up import prediction

from vllm_monitor.collectors import Recording, read_recording
from vllm_monitor.core import TargetPipeline, Tick
from vllm_monitor.failures import FAILURE_HAPPENED, FAILURE_OVER, Episode, episodes_of
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection import PredictiveFailureDetector, Predictor, Settled
from vllm_monitor.records import (
    FailurePrediction,
    GuardrailPolicy,
    HealthObservation,
    PageObservation,
    PauseObservation,
    PredictionOutcome,
    ProbeFailure,
    Severity,
)

STALLED_AT = 42
"""Seconds into the recording at which the stall has happened."""


@pytest.fixture(scope="module")
def recording() -> Recording:
    """An engine that is frozen after 40 s for 40 s."""
    return read_recording(DATA / "engine_sigstop_s0.jsonl.gz")


def began_at(recording: Recording) -> float:
    return min(one.timestamp for one in recording.observations)


class Foretold:
    """A predictor that predicts what it is told, at these seconds into the recording."""

    def __init__(self, began: float, predictions: Sequence[FailurePrediction]) -> None:
        self._began = began
        self._left = list(predictions)
        self.resolved: dict[str, PredictionOutcome] = {}
        self.actions = 0
        self.shown: list[tuple[Snapshot, PageObservation | None, int, int]] = []

    def observe(
        self, snapshot: Snapshot, page: PageObservation | None, failures: Sequence[Episode], ongoing: Sequence[Episode]
    ) -> list[FailurePrediction]:
        assert snapshot.target == "x"
        self.shown.append((snapshot, page, len(failures), len(ongoing)))
        due = [one for one in self._left if one.timestamp <= snapshot.timestamp]
        self._left = [one for one in self._left if one not in due]
        return due

    def note_resolved(self, prediction: FailurePrediction, outcome: PredictionOutcome) -> None:
        self.resolved[prediction.prediction_id] = outcome

    def note_action(self, target: str) -> None:
        self.actions += 1


def foretold(recording: Recording) -> Foretold:
    began = began_at(recording)
    return Foretold(
        began,
        [
            prediction("right", began + 20.0, 60.0, "engine_stall", probability=0.7),
            prediction("wrong", began + 10.0, 70.0, "kv_exhaustion"),
            prediction("own", began + 10.0, 90.0, "flux"),
        ],
    )


def pipeline_over(store: PersistenceManager | None, recording: Recording, foretold: Foretold) -> TargetPipeline:
    tracker = LifecycleTracker(store)
    tracker.resume("x")
    return TargetPipeline("x", tracker=tracker, store=store, predictor=foretold)


def ticks_of(
    recording: Recording, pipeline: TargetPipeline, first: int, last: int, only: tuple[type, ...] = (object,)
) -> Iterator[Tick]:
    began = began_at(recording)
    for count in range(first, last):
        now = began + count
        arrived = [one for one in recording.observations if now - 1.0 < one.visible_at <= now]
        yield pipeline.step(now, [one for one in arrived if isinstance(one, only)])


def outcomes(settled: Sequence[Settled]) -> dict[str, PredictionOutcome]:
    return {one.prediction.prediction_id: one.outcome for one in settled}


EXPECTED = {
    "right": PredictionOutcome.HAPPENED,
    "wrong": PredictionOutcome.DID_NOT_HAPPEN,
    "own": PredictionOutcome.CENSORED,
}


def test_failures_and_outcomes_are_told_and_stored(recording: Recording, tmp_path: Path) -> None:
    oracle = foretold(recording)
    began = began_at(recording)
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        ticks = list(ticks_of(recording, pipeline_over(store, recording, oracle), 0, 120))
        told = [(one.failure_type, one.ended_at is None) for tick in ticks for one in tick.failures]
        assert told == [("engine_stall", True), ("engine_stall", False)]
        (happened,) = store.get_events(FAILURE_HAPPENED, target="x")
        (over,) = store.get_events(FAILURE_OVER, target="x")
        assert (happened.severity, happened.timestamp) == (Severity.CRITICAL, began + STALLED_AT)
        (episode,) = episodes_of([happened, over])
        assert episode.ended_at is not None
        assert 80 <= episode.ended_at - began <= 90
        assert over.timestamp > episode.ended_at, "when it was found out"

        assert [one.prediction_id for tick in ticks for one in tick.predictions] == ["wrong", "own", "right"]
        settled = [one for tick in ticks for one in tick.settled]
        assert outcomes(settled) == EXPECTED
        stored = {one.prediction_id: one for one in store.get_predictions(target="x")}
        assert {one: stored[one].outcome for one in stored} == EXPECTED
        assert stored["right"].resolved_at == began + STALLED_AT, "the time of the tick"
        resolved = {one.data["prediction_id"]: one for one in store.get_events("prediction_resolved", target="x")}
        assert resolved["right"].data["lead_seconds"] == pytest.approx(22.0)
        assert resolved["wrong"].data == {
            "prediction_id": "wrong",
            "failure_type": "kv_exhaustion",
            "outcome": "did_not_happen",
            "lead_seconds": None,
        }
        assert resolved["wrong"].severity is Severity.INFO
        (warning,) = [e for e in store.get_events("failure_predicted") if e.data["failure_type"] == "engine_stall"]
        assert warning.severity is Severity.WARNING
        assert "70%" in warning.message
        assert "the cache fills" in warning.message
    assert len(oracle.shown) == 120, "asked once per tick"
    assert oracle.resolved == EXPECTED
    assert oracle.actions == 0
    assert sum(failures for _, _, failures, _ in oracle.shown) == 2
    assert sum(page is not None for _, page, _, _ in oracle.shown) > 100


@pytest.mark.parametrize("cut", [15, 30, 43, 60, 82, 100])
def test_a_restart_repeats_and_loses_nothing(cut: int, recording: Recording, tmp_path: Path) -> None:
    oracle = foretold(recording)
    settled: list[Settled] = []
    for first, last in ((0, cut), (cut, 120)):
        with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
            pipeline = pipeline_over(store, recording, oracle)
            pipeline.resume(began_at(recording) + first)
            for tick in ticks_of(recording, pipeline, first, last):
                settled += tick.settled
    assert len(settled) == 3
    assert outcomes(settled) == EXPECTED
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        events = store.get_events(target="x", limit=None)
        counts = Counter(one.event_type for one in events)
        assert (counts[FAILURE_HAPPENED], counts[FAILURE_OVER]) == (1, 1)
        assert counts["prediction_resolved"] == counts["failure_predicted"] == 3
        assert {one.prediction_id: one.outcome for one in store.get_predictions()} == EXPECTED


def test_what_ended_while_nobody_watched(recording: Recording, tmp_path: Path) -> None:
    oracle, began = foretold(recording), began_at(recording)
    settled: list[Settled] = []
    for first, last in ((0, 60), (100, 120)):
        with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
            pipeline = pipeline_over(store, recording, oracle)
            pipeline.resume(began + first)
            for tick in ticks_of(recording, pipeline, first, last):
                settled += tick.settled
    assert outcomes(settled) == {**EXPECTED, "wrong": PredictionOutcome.CENSORED}
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        (over,) = store.get_events(FAILURE_OVER)
        assert over.data["ended_unseen"] is True
        assert over.data["ended_at"] == pytest.approx(began + 59, abs=1.0)


def test_an_overdue_one_that_was_watched_to_its_end(recording: Recording, tmp_path: Path) -> None:
    """The monitor was killed before it could settle; looks and verdicts are in the store."""
    began = began_at(recording)
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        list(ticks_of(recording, pipeline_over(store, recording, Foretold(began, [])), 0, 39))
        store.save_prediction(prediction("seen", began + 8.0, 30.0, "kv_exhaustion"))
        store.save_prediction(prediction("unknown yet", began - 20.0, 22.0, "kv_exhaustion"))
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        pipeline = pipeline_over(store, recording, Foretold(began, []))
        pipeline.resume(began + 5_000.0)
        settled = pipeline.step(began + 5_001.0, []).settled
        assert outcomes(settled) == {
            "seen": PredictionOutcome.DID_NOT_HAPPEN,
            "unknown yet": PredictionOutcome.CENSORED,
        }


def test_what_cannot_be_told_is_censored(recording: Recording) -> None:
    began = began_at(recording)
    both = [prediction(name, began + 5.0, 20.0, name) for name in ("kv_exhaustion", "silent_degradation")]
    pipeline = pipeline_over(None, recording, Foretold(began, both))
    settled = [one for tick in ticks_of(recording, pipeline, 0, 39) for one in tick.settled]
    assert outcomes(settled) == {
        "kv_exhaustion": PredictionOutcome.DID_NOT_HAPPEN,
        "silent_degradation": PredictionOutcome.CENSORED,  # nothing was learned of what is usual
    }


@pytest.mark.parametrize("killed", [False, True], ids=["live", "from the store"])
def test_a_server_that_cannot_be_reached_is_not_seen(killed: bool, recording: Recording, tmp_path: Path) -> None:
    began = began_at(recording)
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        oracle = Foretold(began, [prediction("p", began + 8.0, 60.0)])
        pipeline = pipeline_over(store, recording, oracle)
        refused = ProbeFailure("refused", "connection refused")
        settled = [
            one for tick in ticks_of(recording, pipeline, 0, 12, only=(PageObservation,)) for one in tick.settled
        ]
        for count in range(12, 68 if killed else 70):
            now = began + count
            tick = pipeline.step(now, [PageObservation(target="x", timestamp=now, layout=None, failure=refused)])
            settled += tick.settled
        assert tick.snapshot.condition.value == "unreachable"
        if killed:
            assert settled == []
            again = pipeline_over(store, recording, Foretold(began, []))
            again.resume(began + 69.0)
            settled += again.step(began + 69.0, []).settled
    assert outcomes(settled) == {"p": PredictionOutcome.CENSORED}


def test_a_pause_by_somebody_settles_what_is_open(recording: Recording) -> None:
    began = began_at(recording)
    oracle = Foretold(began, [prediction("p", began + 10.0, 300.0)])
    pipeline = pipeline_over(None, recording, oracle)
    list(ticks_of(recording, pipeline, 0, 20))
    pause = pipeline.step(began + 20.0, [PauseObservation(target="x", timestamp=began + 20.0, is_paused=True)])
    tick = pipeline.step(began + 21.0, [PauseObservation(target="x", timestamp=began + 21.0, is_paused=True)])
    assert tick.snapshot.condition.value == "paused"
    settled = [*pause.settled, *tick.settled]
    assert outcomes(settled) == {"p": PredictionOutcome.CENSORED}
    assert "somebody" in settled[0].reason
    assert oracle.actions > 0
    before = oracle.actions
    pipeline.note_mitigation(began + 22.0)
    assert oracle.actions == before + 1


class Plugins:
    """Something that predicts and stores beside the pipeline."""

    def __init__(self) -> None:
        self.new: list[FailurePrediction] = []
        self.resolved: list[str] = []

    def take_predictions(self, target: str) -> list[FailurePrediction]:
        new, self.new = self.new, []
        return new

    def note_resolved(self, prediction: FailurePrediction) -> None:
        self.resolved.append(prediction.prediction_id)


def test_guardrails_know_open_predictions_of_ours_and_of_plugins() -> None:
    guardrails = Guardrails(built_in=())
    guardrails.register(GuardrailPolicy("ours", "", "predictions['kv_exhaustion'] > 0.7"))
    guardrails.register(GuardrailPolicy("theirs", "", "predictions['engine_stall'] > 0.5"))
    plugins = Plugins()
    plugins.new = [
        prediction("b", 1_000.0, 50.0, "engine_stall", probability=0.6, metadata={"plugin": "mine"}),
    ]
    oracle = Foretold(0.0, [prediction("a", 1_001.0, 200.0)])
    pipeline = TargetPipeline(
        "x",
        tracker=LifecycleTracker(resume=False),
        guardrails=guardrails,
        predictor=oracle,
        source=plugins,
    )

    def tick(now: float) -> Tick:
        return pipeline.step(now, [HealthObservation(target="x", timestamp=now, status=200)])

    assert {one.name for one in tick(1_000.0).firing} == {"theirs"}
    assert [one.prediction_id for one in tick(1_001.0).predictions] == ["a"]
    assert {one.name for one in tick(1_002.0).firing} == {"ours", "theirs"}
    assert outcomes(tick(1_050.5).settled) == {"b": PredictionOutcome.CENSORED}
    assert plugins.resolved == ["b"]
    assert {one.name for now in range(1_100, 1_120) for one in tick(float(now)).alerts} == {"theirs"}, "it is over"
    assert {one.name for one in tick(1_120.0).firing} == {"ours"}
    assert {one.name for now in range(1_202, 1_220) for one in tick(float(now)).alerts} == {"ours"}
    assert plugins.resolved == ["b", "a"]
    assert oracle.resolved.keys() == {"a"}, "the others are not its own"


def test_the_detector_of_the_package_fits_the_door() -> None:
    predictor: Predictor = PredictiveFailureDetector()
    for member in ("observe", "note_resolved", "note_action"):
        assert callable(getattr(predictor, member))


def test_a_predictor_that_fails_does_not_end_the_watch() -> None:
    class Broken:
        asked = 0

        def observe(self, *_: object) -> NoReturn:
            self.asked += 1
            raise ZeroDivisionError

        note_resolved = note_action = observe

    broken = Broken()
    pipeline = TargetPipeline("x", tracker=LifecycleTracker(resume=False), predictor=broken)
    for now in range(1_000, 1_070):
        pipeline.step(float(now), [])
    assert broken.asked == 2


@pytest.mark.parametrize(
    ("died", "outcome"), [(False, PredictionOutcome.CENSORED), (True, PredictionOutcome.DID_NOT_HAPPEN)]
)
def test_a_restart_is_meant_unless_the_server_had_died(
    died: bool, outcome: PredictionOutcome, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = began_at(recording)
    tracker = LifecycleTracker(resume=False)
    oracle = Foretold(began, [prediction("p", began + 5.0, 25.0)])
    pipeline = TargetPipeline("x", tracker=tracker, predictor=oracle)
    settled = [one for tick in ticks_of(recording, pipeline, 0, 10) for one in tick.settled]
    if died:
        settled += pipeline.step(
            began + 10.0, [HealthObservation(target="x", timestamp=began + 10, status=503)]
        ).settled
    figures = tracker.figures("x", began)
    monkeypatch.setattr(tracker, "figures", lambda *_: replace(figures, restarts=figures.restarts + 1))
    settled += [one for tick in ticks_of(recording, pipeline, 11, 40) for one in tick.settled]
    assert outcomes(settled) == {"p": outcome}
