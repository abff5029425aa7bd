"""Predictions that expire leave daily counts behind, and no score changes when they do."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.persistence.hostile import predictions
from tests.persistence.test_records import nothing_commits, prediction

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.records.prediction_scores import calibration_bin_of, fold_predictions
from vllm_monitor.persistence.sqlite_file import make_engine
from vllm_monitor.records import FailurePrediction, PredictionOutcome

OpenStore = Callable[..., PersistenceManager]
DAY = 86_400.0


def fold(config: PersistenceConfig, cutoff: float, most: int = 1000) -> list[int]:
    """Fold until nothing is left; the number of each transaction."""
    engine = make_engine(config.db_path, config)
    folded: list[int] = []
    with engine.connect().execution_options(begin="IMMEDIATE") as connection:
        while not folded or folded[-1]:
            with connection.begin():
                folded.append(fold_predictions(connection, cutoff, most=most))
    engine.dispose()
    return folded


def test_scores_do_not_forget(open_store: OpenStore) -> None:
    store = open_store(durable_timeout_seconds=30)
    outcomes = [PredictionOutcome.HAPPENED, PredictionOutcome.DID_NOT_HAPPEN, PredictionOutcome.MITIGATED]
    for number in range(12):
        made = prediction(
            f"{number}",
            number * DAY / 4,
            probability=number / 12,
            outcome=outcomes[number % 3],
            target="t" if number < 6 else "u",
            failure_type="leak" if number % 2 else "stall",
        )
        store.save_prediction(made)
    before = store.get_prediction_scores()
    assert sum(score.predictions for score in before) == 12
    assert fold(store.config, 2 * DAY, most=3) == [3, 3, 2, 0]
    assert [one.prediction_id for one in store.get_predictions()] == ["11", "10", "9", "8"]
    assert store.get_prediction_scores() == before
    store.save_prediction(prediction("late", 0.0, probability=0.01, outcome=outcomes[0], target="t"))
    assert fold(store.config, 2 * DAY) == [1, 0]
    (grown,) = [
        score
        for score in store.get_prediction_scores("engine_stall", start_time=0, end_time=0, target="t")
        if score.calibration_bin == 0
    ]
    assert (grown.predictions, grown.outcome, grown.day_start) == (1, PredictionOutcome.HAPPENED, 0.0)
    assert grown.brier_sum == pytest.approx(0.99**2)
    assert {score.day_start for score in store.get_prediction_scores(start_time=1.5 * DAY)} == {DAY, 2 * DAY}
    assert store.get_prediction_scores(target="nobody") == []


def test_brier_sums(open_store: OpenStore) -> None:
    store = open_store()
    for number, outcome in enumerate(PredictionOutcome):
        store.save_prediction(prediction(f"{number}", outcome=outcome, probability=0.75))
    sums = {score.outcome: score.brier_sum for score in store.get_prediction_scores()}
    assert sums == {
        PredictionOutcome.OPEN: None,
        PredictionOutcome.HAPPENED: 0.0625,
        PredictionOutcome.DID_NOT_HAPPEN: 0.5625,
        PredictionOutcome.MITIGATED: None,
        PredictionOutcome.CENSORED: None,
    }


def test_an_open_prediction_waits_for_the_end_of_its_horizon(open_store: OpenStore) -> None:
    store = open_store()
    store.save_prediction(prediction("short", 100.0, horizon_seconds=10.0))
    store.save_prediction(prediction("long", 100.0, horizon_seconds=1000.0))
    assert fold(store.config, 105.0) == [0]
    assert fold(store.config, 111.0) == [1, 0]
    assert [one.prediction_id for one in store.get_predictions()] == ["long"]
    assert [(score.outcome, score.predictions) for score in store.get_prediction_scores()] == [("open", 2)]


def test_what_is_damaged_is_not_counted(open_store: OpenStore, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store()
    for number in range(4):
        store.save_prediction(prediction(f"{number}", float(number), outcome=PredictionOutcome.HAPPENED))
    with closing(sqlite3.connect(store.config.db_path, isolation_level=None)) as connection:
        connection.execute("UPDATE predictions SET probability = 0.8 WHERE prediction_id = '1'")
        assert fold(store.config, 3.0) == [3, 0]
        assert "not counted" in caplog.text
        assert [score.predictions for score in store.get_prediction_scores()] == [3]
        connection.execute("UPDATE prediction_scores SET predictions = 1000")
    assert [score.predictions for score in store.get_prediction_scores()] == [1]
    assert store.health().damaged_rows == 1
    assert fold(store.config, 10.0) == [1, 0]
    assert [score.predictions for score in store.get_prediction_scores()] == [1]


def test_a_pending_outcome_counts_once(open_store: OpenStore) -> None:
    store = open_store(durable_timeout_seconds=30)
    store.save_prediction(prediction("p"))
    with nothing_commits(store):
        store.enqueue_prediction_outcome("p", "happened")
        store.enqueue_prediction(prediction("q", outcome=PredictionOutcome.HAPPENED))
        assert [(one.outcome, one.predictions) for one in store.get_prediction_scores()] == [("happened", 2)]


def test_bins() -> None:
    probabilities = [0.0, 0.05, 0.1, 0.95, 1.0, None, math.nan, -0.1, 1.1, math.inf]
    assert [calibration_bin_of(one) for one in probabilities] == [0, 0, 1, 9, 9, -1, -1, -1, -1, -1]


@given(st.lists(predictions, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_hostile_predictions_fold_without_a_change_of_scores(
    tmp_path_factory: pytest.TempPathFactory, made: list[FailurePrediction]
) -> None:
    config = PersistenceConfig(storage_dir=tmp_path_factory.mktemp("store"))
    with PersistenceManager(config, synchronous=True) as store:
        for one in made:
            store.enqueue_prediction(one)
        before = store.get_prediction_scores()
        kept = len(store.get_predictions(limit=None))
        assert sum(fold(config, 1e301)) == kept - len(store.get_predictions(limit=None))
        after = store.get_prediction_scores()
        unsummed = [(one.day_start, one.target, one.outcome, one.calibration_bin, one.predictions) for one in before]
        assert [
            (one.day_start, one.target, one.outcome, one.calibration_bin, one.predictions) for one in after
        ] == unsummed
        for new, old in zip(after, before, strict=True):  # the order of adding differs
            assert new.probability_sum == pytest.approx(old.probability_sum)
            assert new.probability_square_sum == pytest.approx(old.probability_square_sum)
        assert store.health().ok
