"""Daily counts of predictions: cut to a range of time, and compared with the rows that are left."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vllm_monitor.persistence.records.prediction_scores import NO_PROBABILITY_BIN, calibration_bin_of, day_of
from vllm_monitor.records import FailurePrediction, PredictionOutcome, PredictionScore

__all__ = ["DAY_SECONDS", "counts_between", "counts_of", "day_start_of", "rows_complete_since"]

DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class _Key:
    """What one daily count is of."""

    day_start: float
    target: str
    failure_type: str
    outcome: PredictionOutcome
    calibration_bin: int | None


def day_start_of(timestamp: float) -> float:
    """Unix seconds at which the UTC day of a time began."""
    return day_of(timestamp) * DAY_SECONDS


def counts_of(predictions: Iterable[FailurePrediction]) -> list[PredictionScore]:
    """The daily counts of some predictions, as the store would make them; in order of their days."""
    probabilities: defaultdict[_Key, list[float | None]] = defaultdict(list)
    for one in predictions:
        probabilities[_key_of(one)].append(one.probability)
    scores = []
    for key in sorted(probabilities, key=lambda one: one.day_start):
        all_of_it = probabilities[key]
        numbers = [] if key.calibration_bin is None else [one for one in all_of_it if one is not None]
        scores.append(
            PredictionScore(
                day_start=key.day_start,
                target=key.target,
                failure_type=key.failure_type,
                outcome=key.outcome,
                calibration_bin=key.calibration_bin,
                predictions=len(all_of_it),
                probability_sum=math.fsum(numbers),
                probability_square_sum=math.fsum(number**2 for number in numbers),
            )
        )
    return scores


def counts_between(
    counts: Iterable[PredictionScore], predictions: Iterable[FailurePrediction], start: float | None, end: float | None
) -> list[PredictionScore]:
    """What the counts say of a range of time that need not begin or end with a day.

    What is known to lie outside of the range, because its row is left, is taken off the days that are cut. Of
    a day whose rows have expired nobody can tell, so that it counts as a whole.

    Args:
        counts: Daily counts, of more days than asked for or of just those.
        predictions: The rows that are left of these days.
        start: Unix seconds, inclusive; ``None`` is no bound.
        end: Likewise.
    """
    first = -math.inf if start is None else start
    last = math.inf if end is None else end
    outside = counts_of(one for one in predictions if not first <= one.timestamp <= last)
    taken_off = {_key_of_count(one): one for one in outside}
    within = []
    for one in counts:
        if one.day_start > last or one.day_start + DAY_SECONDS <= first:
            continue
        other = taken_off.get(_key_of_count(one))
        if other is None:
            within.append(one)
        elif other.predictions < one.predictions:
            within.append(
                replace(
                    one,
                    predictions=one.predictions - other.predictions,
                    probability_sum=one.probability_sum - other.probability_sum,
                    probability_square_sum=one.probability_square_sum - other.probability_square_sum,
                )
            )
    return within


def rows_complete_since(counts: Iterable[PredictionScore], predictions: Iterable[FailurePrediction]) -> float | None:
    """Since when every prediction that was made has a row: the end of the last UTC day that lacks one.

    Args:
        counts: Daily counts of whole days.
        predictions: The rows that are left of these days.

    Returns:
        Unix seconds; ``None`` when no row has expired.
    """
    left = Counter(day_start_of(one.timestamp) for one in predictions)
    made: Counter[float] = Counter()
    for one in counts:
        made[one.day_start] += one.predictions
    lacking = [day for day, number in made.items() if number > left[day]]
    return max(lacking) + DAY_SECONDS if lacking else None


def _key_of(one: FailurePrediction) -> _Key:
    tenth = calibration_bin_of(one.probability)
    calibration_bin = None if tenth == NO_PROBABILITY_BIN else tenth
    return _Key(day_start_of(one.timestamp), one.target, one.failure_type, one.outcome, calibration_bin)


def _key_of_count(one: PredictionScore) -> _Key:
    return _Key(one.day_start, one.target, one.failure_type, one.outcome, one.calibration_bin)
