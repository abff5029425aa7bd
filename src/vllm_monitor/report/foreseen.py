"""Lead times, and how well the time was told, in a few figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_monitor.predictive_failure_detection import Match
from vllm_monitor.records import PredictionOutcome

__all__ = ["LeadTimes", "TimeErrors", "lead_times_of", "time_errors_of"]


MOST_SECONDS = 1e9
"""A time that is told more wrongly than this, thirty years, is nonsense of whoever told it."""


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
    known = [distance for distance in distances if distance < MOST_SECONDS]
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
