"""The report over a real store, before and after rows expired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report.histories import CENSORED, DAY, DID_NOT_HAPPEN, HAPPENED, KV, MITIGATED, STALL, failed, predicted
from tests.report.test_daily_counts import assert_same, of_counts

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.failures import Episode, event_of
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import LifecycleState, StateCheckpoint
from vllm_monitor.report import FailureScore, score_report

NOW = 20_000 * DAY + 40_000.0
A, B = "http://a:8000", "http://b:8000"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[PersistenceManager]:
    config = PersistenceConfig(storage_dir=tmp_path, prediction_retention_days=60, required=True)
    with PersistenceManager(config, clock=clock, synchronous=True) as opened:
        yield opened


def fail(store: PersistenceManager, episode: Episode) -> None:
    store.save_event(event_of(episode))
    store.save_event(event_of(replace(episode, ended_at=episode.happened_at + 30.0)))


def fill(store: PersistenceManager) -> None:
    """Forty days of one prediction a day; three of four come true, and every fifth failure comes unannounced."""
    for day in range(40):
        at = NOW - (day + 1) * DAY
        happens = day % 4 > 0
        kind = KV if day % 3 else STALL
        store.save_prediction(
            predicted(at, HAPPENED if happens else DID_NOT_HAPPEN, 0.3 + 0.015 * day, kind=kind, target=A)
        )
        if happens:
            fail(store, failed(at + 90.0, kind=kind, target=A))
        if day % 5 == 0:
            fail(store, failed(at + 7_000.0, kind=kind, target=A))
    store.save_prediction(predicted(NOW - 100.0, MITIGATED, target=B))
    store.save_prediction(predicted(NOW - 90.0, CENSORED, target=B))


def test_over_a_store(store: PersistenceManager) -> None:
    fill(store)
    found = score_report(store, now=NOW)
    overall = found.scores.overall
    assert (overall.predictions, overall.happened, overall.did_not_happen) == (42, 30, 10)
    assert (overall.mitigated, overall.censored) == (1, 1)
    assert (overall.failures, overall.failures_predicted, overall.recall) == (38, 30, 30 / 38)
    assert overall.lead_seconds is not None
    assert overall.lead_seconds.median == 90.0
    assert overall.time_to_failure.median_seconds == 30.0
    assert overall.is_calibrated
    assert found.days_watched == pytest.approx(40.0, abs=0.01)
    assert overall.false_alarms_per_day == pytest.approx(0.25, abs=0.001)
    assert found.rows_complete_since is None
    assert [one.failure_type for one in found.scores.by_type] == [STALL, KV]


def test_expired_predictions_still_count(store: PersistenceManager, clock: ManualClock) -> None:
    fill(store)
    before = score_report(store, start=NOW - 60 * DAY, now=NOW)
    clock.advance(40 * DAY)
    store.cleanup_old_data()
    assert len(store.get_predictions(limit=None)) < 25
    after = score_report(store, start=NOW - 60 * DAY, now=NOW)
    assert_same(*([_without_rate(one) for one in report.scores.by_type] for report in (before, after)))
    overall = after.scores.overall
    assert overall.false_alarms_per_day == pytest.approx(0.25, rel=0.03)  # the first day counts from its midnight
    assert after.rows_complete_since is not None
    assert overall.failures == 38
    assert 0 < overall.failures_judged < 30
    assert overall.recall == pytest.approx(30 / 38, abs=0.1)  # and not half of it, for what has expired is no miss


def _without_rate(one: FailureScore) -> dict[str, Any]:
    return {name: value for name, value in of_counts(one).items() if name != "false_alarms_per_day"}


def test_a_range_is_cut_to_the_second_and_to_what_was_watched(store: PersistenceManager) -> None:
    fill(store)
    ten_days = score_report(store, start=NOW - 10 * DAY - 1.0, end=NOW - DAY + 1.0, now=NOW)
    assert ten_days.scores.overall.predictions == 10
    assert ten_days.days_watched == pytest.approx(9.0, abs=0.1)
    year = score_report(store, start=NOW - 365 * DAY, now=NOW)
    assert year.days_watched == pytest.approx(40.0, abs=0.01)
    assert score_report(store, start=NOW + DAY, now=NOW).is_empty
    with pytest.raises(ConfigurationError, match="ends before it begins"):
        score_report(store, start=NOW, end=NOW - 1.0, now=NOW)


def test_a_prediction_before_the_range_foretells(store: PersistenceManager) -> None:
    store.save_prediction(predicted(NOW - 200.0, target=A))
    fail(store, failed(NOW - 100.0, target=A))
    overall = score_report(store, start=NOW - 150.0, now=NOW).scores.overall
    assert (overall.predictions, overall.recall, overall.leads) == (0, 1.0, (100.0,))


def test_a_prediction_of_the_day_before_the_range_foretells(store: PersistenceManager) -> None:
    midnight = NOW - 40_000.0
    store.save_prediction(predicted(midnight - 100.0, target=A))
    fail(store, failed(midnight + 50.0, target=A))
    assert score_report(store, start=midnight, now=NOW).scores.overall.leads == (150.0,)


def test_days_of_which_only_counts_are_left_were_watched(store: PersistenceManager, clock: ManualClock) -> None:
    for day in range(20):
        store.save_prediction(predicted(NOW - day * DAY, DID_NOT_HAPPEN, target=A))
    clock.advance(55 * DAY)
    store.cleanup_old_data()
    assert len(store.get_predictions(limit=None)) < 10
    found = score_report(store, now=NOW)
    assert found.days_watched == pytest.approx(19.0 + 40_000.0 / DAY)
    assert found.scores.overall.did_not_happen == 20


def test_a_server_is_watched_since_its_first_checkpoint(store: PersistenceManager) -> None:
    store.save_metric("performance", "vllm:num_requests_running", 1.0, timestamp=NOW - 9 * DAY, target=B)
    store.save_metric("performance", "vllm:num_requests_running", 1.0, timestamp=NOW, target=A)
    for day in (6.0, 2.0):
        store.save_checkpoint(
            StateCheckpoint(NOW - day * DAY, LifecycleState.SERVING, None, None, {}, {}, {}, target=A)
        )
    assert score_report(store, target=A, now=NOW).days_watched == pytest.approx(6.0)
    assert score_report(store, target=A, start=NOW - DAY, now=NOW).days_watched == pytest.approx(1.0)
    assert score_report(store, target=A, start=NOW - 5 * DAY, now=NOW).days_watched == pytest.approx(5.0)
    assert score_report(store, now=NOW).days_watched == pytest.approx(9.0)


def test_one_target_and_one_type(store: PersistenceManager) -> None:
    fill(store)
    other = score_report(store, target=B, now=NOW)
    assert (other.scores.overall.predictions, other.scores.overall.failures) == (2, 0)
    assert other.days_watched == pytest.approx(10.0 / DAY)
    stall = score_report(store, failure_type=STALL, now=NOW)
    assert [one.failure_type for one in stall.scores.by_type] == [STALL]
    assert stall.scores.overall.predictions == stall.scores.by_type[0].predictions == 14


def test_watching_without_any_prediction_counts(store: PersistenceManager) -> None:
    for day in (4.0, 0.0):
        store.save_metric("performance", "vllm:num_requests_running", 1.0, timestamp=NOW - day * DAY, target=A)
    store.save_prediction(predicted(NOW - DAY, DID_NOT_HAPPEN, target=A))
    found = score_report(store, now=NOW)
    assert found.days_watched == pytest.approx(4.0)
    assert found.scores.overall.false_alarms_per_day == pytest.approx(0.25)


def test_an_empty_store_is_a_report_as_well(store: PersistenceManager) -> None:
    found = score_report(store, now=NOW)
    assert found.is_empty
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert (document["types"], document["overall"]["predictions"], document["days_watched"]) == ([], 0, 0.0)
