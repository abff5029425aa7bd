"""Samples in steps: what ``query_range`` answers when it is asked for an aggregation.

A bucket is ``[t, t + step)`` with ``t`` a multiple of the step since 1970. A range is widened to whole buckets, so
the value of a bucket never depends on the range that it was asked in. Buckets without samples are left out.

=============  ======================================================================================================
aggregation    value of a bucket
=============  ======================================================================================================
``avg``        mean of its samples
``min, max``   least and greatest of its samples
``sum``        sum of its samples
``last``       its newest sample (of equal times the last to arrive), also when that is NaN
``increase``   growth of a counter: what each sample added to the one before it (which may lie in an earlier bucket),
               or all of it when it is smaller than the one before, because the counter began again. Samples whose
               minutes are more than five apart are no neighbours: a gap is nobody's growth.
``rate``       ``increase`` by the seconds since the bucket before it that has samples: one step, or more after a gap
               and where samples come less often than steps; one step when that one is no neighbour
``quantile``   of the observations of a histogram, from the increase of its ``_bucket`` series, linear within a
               bucket (``histogram_quantile`` of Prometheus); NaN when nothing was observed
=============  ======================================================================================================

NaN takes no part in ``avg``, ``min``, ``max``, ``sum`` and in growth; a bucket with nothing else is NaN. Nothing is
extrapolated, unlike in Prometheus: ``increase`` of a counter of whole numbers is a whole number, and the increases of
buckets add up to that of the range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.samples.summaries import (
    MINUTE_MS,
    MOST_MINUTES_APART,
    Buckets,
    Floats,
    summarise,
    summarise_spread,
)

__all__ = ["Aggregation", "Need", "Segment", "combine", "growth_of", "histogram_quantile", "segment_of_samples"]

Times = NDArray[np.int64]


class Need(StrEnum):
    """What of the samples an aggregation is made of."""

    LAST = "last"
    GROWTH = "growth"
    SPREAD = "spread"


class Aggregation(StrEnum):
    """How the samples of a bucket become one value."""

    AVG = "avg"
    MIN = "min"
    MAX = "max"
    LAST = "last"
    SUM = "sum"
    RATE = "rate"
    INCREASE = "increase"
    QUANTILE = "quantile"

    @property
    def need(self) -> Need:
        """What it is made of."""
        if self in {Aggregation.RATE, Aggregation.INCREASE, Aggregation.QUANTILE}:
            return Need.GROWTH
        return Need.LAST if self is Aggregation.LAST else Need.SPREAD


@dataclass(slots=True)
class Segment:
    """Sums of one series over a stretch of time; the arrays have one entry per bucket.

    Args:
        bucket_ms: Ascending starts of buckets, of a step that divides the one asked for.
        values: ``last``, or growth since the entry before (of the first entry: since ``first``).
        first: The first value (for growth).
        last: The last value (for growth).
        first_ms: When the stretch begins (its minute is enough).
        last_ms: When it ends.
        low: As ``high``, ``total`` and ``count`` only for a spread.
        high: See there.
        total: See there.
        count: See there.
    """

    bucket_ms: Times
    values: Floats
    first: float
    last: float
    first_ms: int
    last_ms: int
    low: Floats | None = None
    high: Floats | None = None
    total: Floats | None = None
    count: Floats | None = None


def segment_of_samples(times_ms: Times, values: Floats, buckets: Buckets, need: Need) -> Segment | None:
    """Sum up the samples of one series, ascending by time; ``None`` when nothing takes part."""
    if need is Need.GROWTH:
        is_nan = np.isnan(values)
        if is_nan.any():
            times_ms, values = times_ms[~is_nan], values[~is_nan]
    if not len(times_ms):
        return None
    bounds = float(values[0]), float(values[-1]), int(times_ms[0]), int(times_ms[-1])
    if need is Need.LAST:
        lasts_at, bucket_ms = buckets.of(times_ms)
        return Segment(bucket_ms, values[lasts_at], *bounds)
    step_ms = buckets.step_ms
    column = np.ascontiguousarray(values)[:, None]
    summary = summarise(times_ms, column, step_ms)
    lasts = summary.last[:, 0]
    if need is Need.GROWTH:
        if np.isfinite(values).all():
            grown = growth_of(lasts, float(values[0]), summary.correction[:, 0])
        else:
            grown = _growth_step_by_step(times_ms, values, step_ms)
        return Segment(summary.bucket_ms, grown, *bounds)
    spread = summarise_spread(times_ms, column, step_ms)
    fields = (array[:, 0] for array in (spread.low, spread.high, spread.total, spread.count))
    return Segment(summary.bucket_ms, lasts, *bounds, *fields)


def growth_of(lasts: Floats, first: float, correction: Floats) -> Floats:
    """Growth of each bucket since the one before, of the first one since ``first``."""
    with np.errstate(all="ignore"):
        return np.asarray(np.diff(lasts, prepend=first) + correction)


def _growth_step_by_step(times_ms: Times, values: Floats, step_ms: int) -> Floats:
    """The same without taking differences over a whole bucket, of which an infinity would leave nothing."""
    grown = np.zeros(len(values))
    before, after = values[:-1], values[1:]
    with np.errstate(all="ignore"):
        grown[1:] = np.where(after < before, after, after - before)
        grown[1:][np.diff(times_ms // MINUTE_MS) > MOST_MINUTES_APART] = 0.0
        return np.asarray(np.add.reduceat(grown, np.unique(times_ms // step_ms, return_index=True)[1]))


def combine(segments: Sequence[Segment], step_ms: int, aggregation: Aggregation, start_ms: int) -> tuple[Times, Floats]:
    """Starts and values of the buckets from ``start_ms`` on."""
    ordered = sorted(segments, key=lambda segment: segment.first_ms)
    if len(ordered) == 1 and aggregation is Aggregation.LAST:
        bucket_ms = ordered[0].bucket_ms
        if not (bucket_ms % step_ms).any():  # whole buckets already
            keep = int(np.searchsorted(bucket_ms, start_ms))
            return bucket_ms[keep:].copy(), ordered[0].values[keep:].copy()
    if aggregation.need is Need.GROWTH:
        for before, segment in pairwise(ordered):
            segment.values = segment.values.copy()
            segment.values[0] += _growth_between(before, segment)
    buckets = np.concatenate([segment.bucket_ms for segment in ordered]) // step_ms
    order = None
    if np.any(buckets[1:] < buckets[:-1]):  # late samples, of which only roll-ups are left
        order = np.argsort(buckets, kind="stable")
        buckets = buckets[order]
    starts = np.concatenate(([0], np.flatnonzero(np.diff(buckets)) + 1))

    def column(name: str) -> Floats:
        joined = np.concatenate([getattr(segment, name) for segment in ordered])
        return joined if order is None else joined[order]

    with np.errstate(all="ignore"):
        values = _values(aggregation, column, starts)
        if aggregation is Aggregation.RATE:
            values = values / _seconds_grown(buckets[starts] * step_ms, step_ms)
    bucket_ms = buckets[starts] * step_ms
    keep = int(np.searchsorted(bucket_ms, start_ms))
    return bucket_ms[keep:], values[keep:]


def histogram_quantile(quantile: float, bounds: Floats, grown: Floats) -> Floats:
    """The quantile of observations, for each of several times.

    Args:
        quantile: 0 to 1.
        bounds: (buckets,), ascending upper bounds, the last one infinite; otherwise the answer is NaN.
        grown: (buckets, times), the growth of each cumulative bucket.
    """
    times = grown.shape[1]
    if len(bounds) < 2 or not np.isposinf(bounds[-1]):  # one bound and infinity
        return np.full(times, np.nan)
    cumulative = np.maximum.accumulate(grown, axis=0)
    observed = cumulative[-1]
    rank = quantile * observed
    bucket = (cumulative >= rank).argmax(axis=0)
    at = np.arange(times)
    below = np.where(bucket > 0, cumulative[np.maximum(bucket - 1, 0), at], 0.0)
    low = np.where(bucket > 0, bounds[np.maximum(bucket - 1, 0)], 0.0)
    high = bounds[bucket]
    with np.errstate(all="ignore"):
        inside = low + (high - low) * ((rank - below) / (cumulative[bucket, at] - below))
    # Nothing is known above the last finite bound, nor below the first when that is not positive.
    inside = np.where(bucket == len(bounds) - 1, bounds[-2], inside)
    inside = np.where((bucket == 0) & (bounds[0] <= 0), bounds[0], inside)
    return np.where(observed > 0, inside, np.nan)


def _growth_between(before: Segment, segment: Segment) -> float:
    apart = segment.first_ms // MINUTE_MS - before.last_ms // MINUTE_MS
    if not 0 <= apart <= MOST_MINUTES_APART:
        return 0.0
    return segment.first - before.last if segment.first >= before.last else segment.first


def _seconds_grown(bucket_ms: Times, step_ms: int) -> Floats:
    """Over how long the growth of each bucket went on."""
    since_ms = np.diff(bucket_ms, prepend=bucket_ms[:1] - step_ms)
    minutes = np.diff(bucket_ms // MINUTE_MS, prepend=bucket_ms[:1] // MINUTE_MS)
    least_apart = minutes - max(0, step_ms // MINUTE_MS - 1)  # of the last sample there and the first one here
    return np.where(least_apart <= MOST_MINUTES_APART, since_ms, step_ms) / 1000


def _values(aggregation: Aggregation, column: Callable[[str], Floats], starts: Times) -> Floats:
    if aggregation is Aggregation.LAST:
        values = column("values")
        return np.asarray(values[np.append(starts[1:], len(values)) - 1])
    if aggregation.need is Need.GROWTH:
        return np.asarray(np.add.reduceat(column("values"), starts))
    if aggregation is Aggregation.MIN:
        return np.asarray(np.fmin.reduceat(column("low"), starts))
    if aggregation is Aggregation.MAX:
        return np.asarray(np.fmax.reduceat(column("high"), starts))
    total, count = np.add.reduceat(column("total"), starts), np.add.reduceat(column("count"), starts)
    if aggregation is Aggregation.SUM:
        return np.where(count > 0, total, np.nan)
    return np.asarray(total / np.where(count > 0, count, np.nan))
