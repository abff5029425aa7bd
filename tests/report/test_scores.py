"""Every figure against an example that was computed by hand."""

from __future__ import annotations

import math

import pytest
from tests.report.histories import (
    CENSORED,
    DAY,
    DID_NOT_HAPPEN,
    HAPPENED,
    KV,
    MITIGATED,
    OPEN,
    STALL,
    failed,
    predicted,
)

from vllm_monitor.failures import Episode
from vllm_monitor.records import FailurePrediction
from vllm_monitor.report import LeadTimes, ReliabilityBin, Scores, counts_of, score_predictions

PREDICTIONS = [
    predicted(1000, HAPPENED, 0.9, expected=100, interval=(50, 120)),  # 100 s before: exact, inside
    predicted(1060, HAPPENED, 0.8, expected=60, interval=(50, 90)),  # 40 s before the same failure: 20 off, outside
    predicted(5000, HAPPENED, 0.95, expected=150, interval=(0, 199)),  # 200 s before: 50 off, outside
    predicted(5010, HAPPENED, 0.95, expected=190),  # 190 s before: exact, without an interval
    predicted(9000, DID_NOT_HAPPEN, 0.75),
    predicted(9500, DID_NOT_HAPPEN, 0.25),
    predicted(9600, MITIGATED, 0.9),
    predicted(9700, CENSORED, 0.9),
    predicted(9800, OPEN, 0.9),
    predicted(20_000, DID_NOT_HAPPEN, 0.2, kind=STALL),
]
FAILURES = [failed(1100), failed(5200), failed(15_000), failed(20_350, kind=STALL), failed(1100, target="b")]


def score(
    predictions: list[FailurePrediction], failures: list[Episode], *, start: float = 0.0, end: float = 10 * DAY
) -> Scores:
    within = [one for one in predictions if start <= one.timestamp <= end]
    return score_predictions(
        predictions,
        failures,
        counts_of(within),
        start=start,
        end=end,
        watched_seconds=2 * DAY,
        rows_complete_since=None,
    )


def test_what_became_of_them() -> None:
    stall, kv = score(PREDICTIONS, FAILURES).by_type
    assert (stall.failure_type, kv.failure_type) == (STALL, KV)  # in the order of FAILURE_TYPES
    assert (kv.predictions, kv.happened, kv.did_not_happen) == (9, 4, 2)
    assert (kv.mitigated, kv.censored, kv.open) == (1, 1, 1)
    assert kv.precision == 4 / 6
    assert kv.false_alarms_per_day == 1.0
    overall = score(PREDICTIONS, FAILURES).overall
    assert (overall.failure_type, overall.predictions, overall.resolved) == (None, 10, 7)
    assert overall.precision == 4 / 7
    assert overall.false_alarms_per_day == 1.5


def test_recall_and_lead() -> None:
    stall, kv = score(PREDICTIONS, FAILURES).by_type
    assert (kv.failures, kv.failures_judged, kv.failures_predicted, kv.recall) == (4, 4, 2, 0.5)
    assert kv.leads == (100.0, 200.0)
    assert kv.lead_seconds == LeadTimes(count=2, median=150.0, minimum=100.0, p10=110.0, p90=190.0)
    assert (stall.failures, stall.failures_predicted, stall.recall) == (1, 0, 0.0)  # it came after the horizon
    assert stall.lead_seconds is None
    assert score(PREDICTIONS, FAILURES).overall.recall == 2 / 5


def test_errors_of_the_time() -> None:
    told = score(PREDICTIONS, FAILURES).overall.time_to_failure
    assert (told.count, told.median_seconds) == (4, 10.0)
    assert (told.interval_count, told.interval_coverage) == (3, 1 / 3)


def test_calibration() -> None:
    found = score(PREDICTIONS, FAILURES).by_type[1].calibration
    squares = 0.1**2 + 0.2**2 + 2 * 0.05**2 + 0.75**2 + 0.25**2
    assert (found.count, found.base_rate) == (6, 4 / 6)
    assert found.brier == pytest.approx(squares / 6)
    assert found.brier_skill == pytest.approx(1 - squares / 6 / (4 / 6 * 2 / 6))
    assert found.ece == pytest.approx((0.25 + 0.75 + 0.2 + (0.1 + 2 * 0.05)) / 6)
    assert [(one.low, one.high, one.count, one.happened) for one in found.bins] == [
        (0.2, 0.3, 1, 0),
        (0.7, 0.8, 1, 0),
        (0.8, 0.9, 1, 1),
        (0.9, 1.0, 3, 3),
    ]
    assert found.bins[3].mean_probability == pytest.approx(2.8 / 3)
    assert found.bins[3].happened_ratio == 1.0


def test_a_perfect_and_a_useless_one() -> None:
    perfect = [predicted(i, HAPPENED if i % 2 else DID_NOT_HAPPEN, float(i % 2)) for i in range(20)]
    found = score(perfect, []).overall
    assert (found.calibration.brier, found.calibration.brier_skill, found.calibration.ece) == (0.0, 1.0, 0.0)
    assert found.is_calibrated
    assert not score(perfect[1:], []).overall.is_calibrated
    useless = [predicted(i, HAPPENED if i % 2 else DID_NOT_HAPPEN, 0.5) for i in range(20)]
    assert score(useless, []).overall.calibration.brier_skill == 0.0
    assert score(useless, []).overall.calibration.bins == (
        ReliabilityBin(low=0.5, high=0.6, count=20, happened=10, mean_probability=0.5, happened_ratio=0.5),
    )
    certain = score([predicted(1, HAPPENED, 0.9)], []).overall.calibration
    assert certain.brier_skill is None  # there was nothing to tell apart


def test_a_probability_that_is_none_is_in_precision_alone() -> None:
    found = score([predicted(1, HAPPENED, math.nan), predicted(2, DID_NOT_HAPPEN, 1.0)], []).overall
    assert found.precision == 0.5
    assert (found.calibration.count, found.calibration.brier, found.calibration.base_rate) == (1, 1.0, 0.0)


@pytest.mark.parametrize(
    ("made_at", "happened_at", "is_foretold"),
    [(1000, 1000, False), (1000, 1000.5, True), (1000, 1300, True), (1000, 1300.5, False), (1000, 900, False)],
)
def test_what_foretells(made_at: float, happened_at: float, is_foretold: bool) -> None:
    found = score([predicted(made_at)], [failed(happened_at)]).overall
    assert found.recall == float(is_foretold)
    assert found.leads == ((happened_at - made_at,) if is_foretold else ())


def test_one_prediction_foretells_one_failure() -> None:
    """A failure that comes and goes has not been foretold each time by what was said before the first."""
    found = score([predicted(1000)], [failed(1050), failed(1100), failed(1150)]).overall
    assert (found.failures_predicted, found.leads) == (1, (50.0,))


@pytest.mark.parametrize("other", [predicted(1000, kind=STALL), predicted(1000, target="b")])
def test_another_type_or_server_is_not_foretold(other: FailurePrediction) -> None:
    assert score([other], [failed(1100)]).by_type[-1].recall == 0.0


def test_a_prediction_before_the_range_foretells_a_failure_in_it_and_counts_for_nothing_else() -> None:
    found = score([predicted(990, interval=(0, 300))], [failed(1010), failed(1900)], start=1000, end=1500).overall
    assert (found.failures, found.failures_predicted, found.leads) == (1, 1, (20.0,))
    assert (found.predictions, found.time_to_failure.count, found.time_to_failure.interval_count) == (0, 0, 0)


def test_failures_from_before_the_rows_are_not_judged() -> None:
    found = score_predictions(
        [predicted(DAY + 50)],
        [failed(100), failed(DAY + 100)],
        [],
        start=0.0,
        end=2 * DAY,
        watched_seconds=1.0,
        rows_complete_since=DAY,
    ).overall
    assert (found.failures, found.failures_judged, found.failures_predicted, found.recall) == (2, 1, 1, 1.0)


def test_nothing() -> None:
    found = score_predictions([], [], [], start=-math.inf, end=math.inf, watched_seconds=0.0)
    assert found.by_type == ()
    overall = found.overall
    assert (overall.precision, overall.recall, overall.lead_seconds, overall.false_alarms_per_day) == (None,) * 4
    assert (overall.calibration.brier, overall.calibration.ece, overall.calibration.bins) == (None, None, ())
    assert not overall.is_calibrated


def test_types_of_plugins_come_last_by_name() -> None:
    made = [predicted(1, kind=kind) for kind in ("zebra", "ant", KV, STALL)]
    assert [one.failure_type for one in score(made, []).by_type] == [STALL, KV, "ant", "zebra"]


def test_times_that_are_no_numbers() -> None:
    made = [
        predicted(1000, expected=math.nan, interval=(math.nan, 200.0)),
        predicted(1001, expected=math.inf, interval=(0.0, math.inf)),
    ]
    told = score(made, [failed(1100)]).overall.time_to_failure
    assert (told.count, told.median_seconds, told.interval_count, told.interval_coverage) == (0, None, 1, 1.0)
