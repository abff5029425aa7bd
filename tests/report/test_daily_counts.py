"""Counts say the same as the rows that they were made of, however many of these have expired."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.histories import DAY, DID_NOT_HAPPEN, HAPPENED, predicted, predictions

from vllm_monitor.records import FailurePrediction
from vllm_monitor.report import FailureScore, counts_between, counts_of, rows_complete_since, score_predictions
from vllm_monitor.report.daily_counts import day_start_of

TIMES = st.floats(0.0, 10 * DAY)


def figures(made: list[FailurePrediction], counts: list[Any]) -> list[dict[str, Any]]:
    """What must not change when rows expire."""
    scores = score_predictions(made, [], counts, start=-math.inf, end=math.inf, watched_seconds=DAY)
    return [of_counts(one) for one in (scores.overall, *scores.by_type)]


def of_counts(one: FailureScore) -> dict[str, Any]:
    names = ("failure_type", "predictions", "happened", "did_not_happen", "mitigated", "censored", "open", "precision")
    picked = {name: getattr(one, name) for name in (*names, "false_alarms_per_day", "is_calibrated")}
    calibration = asdict(one.calibration)
    bins = calibration.pop("bins")
    return {**picked, **calibration, **{f"{each['low']} {name}": each[name] for each in bins for name in each}}


def assert_same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    assert [one.keys() for one in left] == [one.keys() for one in right]
    for one, other in zip(left, right, strict=True):
        for name, value in one.items():
            same = pytest.approx(value, abs=1e-9) if isinstance(value, float) else value
            assert other[name] == same, name


@given(made=predictions(), cutoff=TIMES)
def test_no_figure_changes_when_rows_expire(made: list[FailurePrediction], cutoff: float) -> None:
    left = [one for one in made if one.timestamp >= cutoff]
    expired = [one for one in made if one.timestamp < cutoff]
    counts = counts_of(made)
    assert_same(figures(made, counts), figures(left, counts))
    in_pieces = counts_of(expired) + counts_of(left)  # as two stores that were merged would have them
    assert_same(figures(made, counts), figures(left, in_pieces))
    since = rows_complete_since(counts, left)
    if not expired:
        assert since is None
    else:
        assert since == max(day_start_of(one.timestamp) for one in expired) + DAY


@given(made=predictions(), start=TIMES | st.none(), end=TIMES | st.none())
def test_a_range_that_cuts_days_is_exact_while_rows_are_left(
    made: list[FailurePrediction], start: float | None, end: float | None
) -> None:
    first, last = 0.0 if start is None else start, math.inf if end is None else end
    within = [one for one in made if first <= one.timestamp <= last]
    cut = counts_between(counts_of(made), made, start, end)
    assert_same(figures(within, counts_of(within)), figures(within, cut))


def test_what_lies_outside_is_taken_off_every_sum() -> None:
    made = [predicted(10.0, HAPPENED, 0.51), predicted(20.0, HAPPENED, 0.52), predicted(30.0, HAPPENED, 0.54)]
    (left,) = counts_between(counts_of(made), made, 15.0, 25.0)
    assert left.predictions == 1
    assert left.probability_sum == pytest.approx(0.52)
    assert left.probability_square_sum == pytest.approx(0.52**2)


def test_a_day_whose_rows_have_expired_counts_as_a_whole() -> None:
    made = [predicted(10.0, HAPPENED), predicted(DAY - 10.0, HAPPENED), predicted(DAY + 10.0, DID_NOT_HAPPEN)]
    cut = counts_between(counts_of(made), made[2:], DAY / 2, None)
    assert sum(one.predictions for one in cut) == 3
    assert counts_between(counts_of(made), made[2:], DAY, DAY + 5.0) == []
    assert [one.outcome for one in counts_between(counts_of(made), made[2:], DAY, None)] == [DID_NOT_HAPPEN]


def test_a_row_that_is_not_counted_yet_does_no_harm() -> None:
    """Counts are read before rows; what is saved in between is a row without a count."""
    late = predicted(20.0)
    assert rows_complete_since([], [late]) is None
    assert counts_between([], [late], 30.0, None) == []
