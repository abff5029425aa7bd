"""Which failures were foreseen, how long before, and how well the time was told."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_monitor.failures import Episode
from vllm_monitor.records import FailurePrediction, PredictionOutcome

__all__ = ["LeadTimes", "Match", "TimeErrors", "lead_times_of", "leads_by_failure", "matches_of", "time_errors_of"]


@dataclass(frozen=True, slots=True)
class Match:
    """A prediction and the failure that it foretold."""

    prediction: FailurePrediction
    failure: Episode

    @property
    def seconds(self) -> float:
        """From the prediction to the failure; above 0."""
        return self.failure.happened_at - self.prediction.timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadTimes:
    """How long before failures their first predictions were made, in seconds above 0.

    Args:
        count: Failures that were foreseen.
        median: Of their lead times.
        minimum: The shortest.
        p10: Nine of ten were foreseen at least so long before (quantile 0.1, interpolated).
        p90: One of ten was foreseen at least so long before.
    """

    count: int
    median: float
    minimum: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeErrors:
    """How far predictions that came true were off about the time.

    Args:
        count: Predictions that happened and whose failure is known.
        median_seconds: Median of the distance between expected and actual time to failure; ``None`` without any.
        interval_count: Those among them with an interval.
        interval_coverage: The share of these whose failure came within it, 0 to 1; ``None`` without any.
    """

    count: int
    median_seconds: float | None
    interval_count: int
    interval_coverage: float | None


def matches_of(predictions: Iterable[FailurePrediction], failures: Iterable[Episode]) -> list[Match]:
    """Predictions that were followed by what they foretold.

    A prediction speaks of the first failure of its target and type after it, and has foretold it when that came
    within its horizon. So one prediction foretells one failure; a failure may have been foretold by many.
    """
    by_subject: defaultdict[tuple[str, str], list[Episode]] = defaultdict(list)
    for episode in sorted(failures, key=lambda one: one.happened_at):
        by_subject[episode.target, episode.failure_type].append(episode)
    found = []
    for prediction in predictions:
        after = by_subject.get((prediction.target, prediction.failure_type), [])
        place = bisect_right(after, prediction.timestamp, key=lambda one: one.happened_at)
        if place < len(after) and after[place].happened_at - prediction.timestamp <= prediction.horizon_seconds:
            found.append(Match(prediction, after[place]))
    return found


def leads_by_failure(matches: Iterable[Match]) -> dict[Episode, float]:
    """Each failure that was foreseen, and the seconds from its earliest prediction to it."""
    leads: dict[Episode, float] = {}
    for match in matches:
        leads[match.failure] = max(match.seconds, leads.get(match.failure, 0.0))
    return leads


def lead_times_of(leads: Sequence[float]) -> LeadTimes | None:
    """Lead times in a few figures; ``None`` when nothing was foreseen."""
    if not leads:
        return None
    p10, median, p90 = (float(one) for one in np.quantile(leads, (0.1, 0.5, 0.9)))
    return LeadTimes(count=len(leads), median=median, minimum=min(leads), p10=p10, p90=p90)


def time_errors_of(matches: Iterable[Match]) -> TimeErrors:
    """How well the time was told by predictions that are resolved as happened."""
    happened = [one for one in matches if one.prediction.outcome is PredictionOutcome.HAPPENED]
    distances = [abs(one.prediction.time_to_failure - one.seconds) for one in happened]
    known = [distance for distance in distances if math.isfinite(distance)]
    within = [
        low <= one.seconds <= high
        for one in happened
        for low, high in [(one.prediction.time_to_failure_low, one.prediction.time_to_failure_high)]
        if low is not None and high is not None and not math.isnan(low + high)
    ]
    return TimeErrors(
        count=len(known),
        median_seconds=float(np.median(known)) if known else None,
        interval_count=len(within),
        interval_coverage=sum(within) / len(within) if within else None,
    )
