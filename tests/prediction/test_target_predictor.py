"""Predictions of one server: over recordings, over simulations, over restarts; silent where nothing is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.clock import make_random
from vllm_monitor.collectors import read_recording
from vllm_monitor.core import RecordingReport, TargetPipeline, replay_ticks
from vllm_monitor.core.pipeline import Tick
from vllm_monitor.failures import Episode
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection import PredictionSettings, PredictiveFailureDetector
from vllm_monitor.predictive_failure_detection.target_predictor import TargetPredictor
from vllm_monitor.records import (
    Condition,
    FailurePrediction,
    HealthObservation,
    LifecycleState,
    PageObservation,
    PredictionConfidence,
    PredictionOutcome,
    StateCheckpoint,
)
from vllm_monitor.simulator import Fault, FaultKind, ServerSettings, Simulator
from vllm_monitor.testing.detector_contract import state_bytes

OVERLOAD = Path(__file__).parents[1] / "data" / "overload_s0.jsonl.gz"
TARGET = "http://a"


def report_of(path: Path) -> RecordingReport:
    recording = read_recording(path)
    report = RecordingReport(path.name, recording.truth)
    for tick in replay_ticks(recording, predictor=PredictiveFailureDetector()):
        report.add(tick)
    return report


def simulated(simulator: Simulator, seconds: float, *, step: float = 1.0) -> Iterator[Tick]:
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker(), predictor=PredictiveFailureDetector())
    for _ in range(int(seconds / step)):
        simulator.advance(step)
        layout, values = simulator.scrape()
        at = simulator.unix_time
        page = PageObservation(
            target=TARGET, timestamp=at, latency_seconds=0.002, layout=layout, values=values, status=200
        )
        health = HealthObservation(target=TARGET, timestamp=at, latency_seconds=0.001, status=200)
        yield pipeline.step(at + 0.01, [page, health])


# -- real recordings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kv_exhaust_s0", "overload_s0"])
def test_it_is_predicted_after_the_injection_and_before_the_first_client_error(name: str, shared_dir: Path) -> None:
    report = report_of(shared_dir / "recordings" / f"{name}.jsonl.gz")
    assert report.truth.injected_at is not None
    assert report.truth.first_client_error_at is not None
    first = report.predictions[0]
    assert report.truth.injected_at < first.prediction.timestamp < report.truth.first_client_error_at - 10.0
    assert first.outcome is PredictionOutcome.HAPPENED
    assert first.prediction.contributing_factors
    assert first.prediction.recommended_mitigations[0] == "limit_admission"


def test_a_leak_is_predicted_within_thirty_seconds(shared_dir: Path) -> None:
    report = report_of(shared_dir / "recordings" / "mem_leak_s0.jsonl.gz")
    assert report.truth.injected_at is not None
    leak = next(one.prediction for one in report.predictions if one.prediction.failure_type == "memory_exhaustion")
    assert 0 < leak.timestamp - report.truth.injected_at < 30.0
    assert any("memory" in factor for factor in leak.contributing_factors)


@pytest.mark.parametrize("name", ["healthy_s0", "healthy_s1", "bad_requests_s0", "client_abort_s0", "cpu_starve_s0"])
def test_where_nothing_fails_it_is_silent(name: str, shared_dir: Path) -> None:
    assert report_of(shared_dir / "recordings" / f"{name}.jsonl.gz").predictions == []


@pytest.mark.parametrize("name", ["engine_sigstop_s0", "worker_sigstop_s0", "api_sigstop_s0", "worker_sigkill_s0"])
def test_a_stop_or_a_death_is_detected_within_fifteen_seconds(name: str, shared_dir: Path) -> None:
    report = report_of(shared_dir / "recordings" / f"{name}.jsonl.gz")
    assert report.truth.injected_at is not None
    assert 0 < report.failures[0].happened_at - report.truth.injected_at < 15.0


# -- simulated ---------------------------------------------------------------------------------------------------


def healthy_hour(step: float) -> list[FailurePrediction]:
    """Bursts and quiet stretches, all within what the server can do."""
    dice = make_random(7)
    faults, at = [], 60.0
    while at < 3_500.0:
        length = dice.uniform(20.0, 120.0)
        faults.append(Fault(FaultKind.OVERLOAD, at, length, rate_multiplier=dice.choice([0.0, 0.3, 1.5, 2.0])))
        at += length + dice.uniform(20.0, 120.0)
    simulator = Simulator(ServerSettings(), seed=11, faults=faults)
    return [one for tick in simulated(simulator, 3_600.0, step=step) for one in tick.predictions]


def test_an_hour_of_healthy_work_at_varying_load_is_silent() -> None:
    assert healthy_hour(5.0) == []


@pytest.mark.slow
def test_it_is_silent_at_every_second_as_well() -> None:
    assert healthy_hour(1.0) == []


def test_a_growing_queue_is_predicted_and_comes_true() -> None:
    faults = [
        Fault(FaultKind.OVERLOAD, 300.0 + 20.0 * step, 20.0, rate_multiplier=1.35 ** (step + 1)) for step in range(14)
    ]
    ticks = list(simulated(Simulator(ServerSettings(), seed=3, faults=faults), 620.0))
    made = [one for tick in ticks for one in tick.predictions]
    settled = [one for tick in ticks for one in tick.settled]
    assert {"queue_saturation", "latency_breach"} & {one.failure_type for one in made}
    happened = [one for one in settled if one.outcome is PredictionOutcome.HAPPENED]
    assert happened
    assert max(one.lead_seconds or 0.0 for one in happened) > 5.0


# -- over restarts -----------------------------------------------------------------------------------------------


def pictures(path: Path) -> list[tuple[Snapshot, tuple[Episode, ...], tuple[Episode, ...]]]:
    """Snapshots of a recording, with failures that happened and go on."""
    found = []
    ongoing: dict[tuple[str, float], Episode] = {}
    for tick in replay_ticks(read_recording(path)):
        for one in tick.failures:
            key = (one.failure_type, one.happened_at)
            if one.ended_at is None:
                ongoing[key] = one
            else:
                ongoing.pop(key, None)
        found.append((tick.snapshot, tick.failures, tuple(ongoing.values())))
    return found


@pytest.mark.parametrize("cut", [1, 20, 40, 45, 60, 100])
def test_a_recording_cut_in_two_is_judged_alike_tick_by_tick(cut: int, tmp_path: Path) -> None:
    looks = pictures(OVERLOAD)
    whole = PredictiveFailureDetector()
    config = PersistenceConfig(storage_dir=tmp_path / "store")
    store = PersistenceManager(config, synchronous=True)
    part = PredictiveFailureDetector(persistence_manager=store)
    made = 0
    for number, (snapshot, failures, ongoing) in enumerate(looks):
        if number == cut:
            part.save(snapshot.target)
            store.close()
            store = PersistenceManager(config, synchronous=True)
            part = PredictiveFailureDetector(persistence_manager=store)
            part.resume(snapshot.target)
        expected = whole.observe(snapshot, None, failures, ongoing)
        found = part.observe(snapshot, None, failures, ongoing)
        assert found == expected
        assert part.outlook(snapshot.target) == whole.outlook(snapshot.target)
        for one in found:
            store.save_prediction(one)
        made += len(found)
    store.close()
    assert made >= 2


def test_predictions_of_before_a_crash_hold_the_next_ones_down(tmp_path: Path) -> None:
    looks = pictures(OVERLOAD)
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store"), synchronous=True) as store:
        first = PredictiveFailureDetector(persistence_manager=store)
        at = 0
        while not (made := first.observe(looks[at][0], None, *looks[at][1:])):
            at += 1
        for one in made:
            store.save_prediction(one)
        second = PredictiveFailureDetector(persistence_manager=store)  # nothing was saved: a kill -9
        second.resume(looks[0][0].target)
        again = [one for snapshot, *rest in looks[at - 20 :] for one in second.observe(snapshot, None, *rest)]
    assert {one.failure_type for one in made}.isdisjoint(
        one.failure_type for one in again if one.timestamp < made[0].timestamp + 300.0
    )


def test_the_budget_of_a_day_goes_on_after_a_crash(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store"), synchronous=True) as store:
        for number in range(3):
            store.save_prediction(prediction(f"{number}", 1e9 - 1_000.0 + 330.0 * number))
        detector = PredictiveFailureDetector(PredictionSettings(daily_budget=3), store)
        detector.resume(TARGET)
        filled = [snapshot(1e9 + second, filling(1e9 + second)) for second in range(60)]
        assert [made for look in filled for made in detector.observe(look)] == []
        assert detector.suppressed(TARGET)


def test_what_makes_no_sense_in_a_state_is_left_out(tmp_path: Path) -> None:
    looks = pictures(OVERLOAD)
    good = TargetPredictor("x")
    for snapshot, _, ongoing in looks[:60]:
        good.observe(snapshot, (), ongoing)
    state = good.state()
    for name in state:
        others: tuple[Any, ...] = (None, "x", [], {}, -1, math.nan, {"a": {"b": 1}})
        for hostile in others:
            predictor = TargetPredictor("x")
            predictor.restore({**state, name: hostile})
            predictor.observe(looks[60][0], (), ())


@pytest.mark.slow
def test_memory_is_bounded_over_a_simulated_month() -> None:
    predictor, dice = TargetPredictor(TARGET), make_random(1)
    sizes = []
    for minute in range(30 * 24 * 60):
        values = {
            "requests_running": 8.0 + dice.gauss(0.0, 2.0),
            "requests_waiting": float(max(0, round(dice.gauss(-2.0, 3.0)))),
            "kv_cache_usage_ratio": min(1.0, abs(dice.gauss(0.3, 0.15))),
            "inter_token_latency_p50_seconds": 0.02 + abs(dice.gauss(0.0, 0.004)),
        }
        happened = ("queue_saturation",) if minute % 700 == 699 else ()
        predictor.observe(snapshot(1e9 + 60.0 * minute, values), happened)
        if minute % 10_000 == 9_999:
            sizes.append(state_bytes(predictor.state()))
    assert max(sizes) < 1.05 * sizes[0] + 10_000


def prediction(name: str, at: float) -> FailurePrediction:
    state, sure = LifecycleState.SERVING, PredictionConfidence.HIGH
    return FailurePrediction(name, at, state, None, "kv_exhaustion", 60.0, 0.7, sure, [], [], target=TARGET)


# -- when it says nothing ----------------------------------------------------------------------------------------


def snapshot(now: float, values: dict[str, float], condition: Condition = Condition.OK) -> Snapshot:
    return Snapshot(
        target=TARGET,
        timestamp=now,
        state=LifecycleState.PROCESSING_REQUESTS,
        condition=condition,
        reason="",
        condition_since=0.0,
        values=values,
        scraped_at=now,
    )


def filling(now: float) -> dict[str, float]:
    level = min(1.0, 0.02 * (now - 1e9))
    return {
        "requests_running": 40.0,
        "requests_waiting": max(0.0, 30.0 * (level - 0.8)),
        "kv_cache_usage_ratio": level,
        "preemptions_per_second": 2.0 if level > 0.9 else 0.0,
    }


def made_while(condition: Condition = Condition.OK, age: float = 0.0, begin: int = 0) -> tuple[list[str], str]:
    detector = PredictiveFailureDetector()
    found = []
    for second in range(begin, 60):
        look = snapshot(1e9 + second, filling(1e9 + second), condition)
        found += detector.observe(replace(look, scraped_at=look.timestamp - age))
    return [one.failure_type for one in found], detector.outlook(TARGET).abstains


def test_a_cache_that_fills_is_predicted() -> None:
    found, abstains = made_while()
    assert "kv_exhaustion" in found
    assert abstains == ""


@pytest.mark.parametrize(
    ("condition", "words"),
    [(Condition.STARVED, "host"), (Condition.PAUSED, "paused"), (Condition.STARTING, "starting")],
)
def test_it_abstains_and_says_why(condition: Condition, words: str) -> None:
    found, abstains = made_while(condition)
    assert found == []
    assert words in abstains


def test_it_abstains_with_stale_data_and_at_first() -> None:
    assert made_while(age=20.0) == ([], "its newest page is too old")
    assert made_while(begin=45) == ([], "it has been followed for less than 20 s")
    assert PredictiveFailureDetector().outlook("http://b").abstains == "it is not watched"


def test_it_says_uncalibrated_until_twenty_are_resolved() -> None:
    detector = PredictiveFailureDetector()
    one = prediction("1", 1e9)
    for _ in range(20):
        detector.note_resolved(one, PredictionOutcome.HAPPENED)
        detector.note_resolved(one, PredictionOutcome.CENSORED)
    found = [made for second in range(60) for made in detector.observe(snapshot(1e9 + second, filling(1e9 + second)))]
    by_type = {one.failure_type: one.calibrated for one in found}
    assert by_type.pop("kv_exhaustion") is True
    assert not any(by_type.values())


def test_checkpoints_are_analysed_one_after_the_other() -> None:
    detector = PredictiveFailureDetector(PredictionSettings(least_probability=0.5))
    found = []
    for second in range(60):
        at = 1e9 + second
        found += detector.analyze_checkpoint(
            StateCheckpoint(at, LifecycleState.SERVING, None, None, {}, {}, {}, metrics=filling(at), target=TARGET)
        )
    kinds = {one.failure_type for one in found}
    assert "kv_exhaustion" in kinds
    assert all(one.probability >= 0.5 for one in found)
