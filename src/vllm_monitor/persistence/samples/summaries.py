"""What samples come to in steps of time: the sums behind roll-ups and behind aggregated queries.

Growth of a counter is exact: what every sample added to the one before it, and all of a sample's value when it is
smaller than the one before (the counter began again). Samples whose minutes are more than five apart are no
neighbours: what happened between them is nobody's growth. NaN takes no part in lowest, highest, total and count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.records import MetricKind, Series

__all__ = [
    "MINUTE_MS",
    "MOST_MINUTES_APART",
    "Buckets",
    "Spread",
    "Summary",
    "buckets_of",
    "is_counter",
    "summarise",
    "summarise_spread",
]

MINUTE_MS = 60_000
MOST_MINUTES_APART = 5
_MANY_PER_BUCKET = 8

Floats = NDArray[np.float64]

_COUNTER_ENDINGS = ("_total", "_bucket", "_count", "_sum")


def is_counter(series: Series) -> bool:
    """Whether a series counts up, so that its growth is what matters."""
    if series.kind in {MetricKind.COUNTER, MetricKind.HISTOGRAM}:
        return True
    return series.kind is not MetricKind.GAUGE and series.name.endswith(_COUNTER_ENDINGS)


@dataclass(frozen=True, slots=True)
class Spread:
    """(buckets, columns) each; a bucket with nothing but NaN has NaN, NaN, 0 and 0."""

    low: Floats
    high: Floats
    total: Floats
    count: Floats


@dataclass(frozen=True, slots=True)
class Summary:
    """Columns that have samples at the same times, in ascending buckets that have any.

    Args:
        bucket_ms: Start of each bucket.
        first: (columns,), the value of the first sample.
        last: (buckets, columns), the value of the last sample.
        correction: (buckets, columns), what makes ``last - last of the bucket before + correction`` the growth.
    """

    bucket_ms: NDArray[np.int64]
    first: Floats
    last: Floats
    correction: Floats


def summarise(times_ms: NDArray[np.int64], values: Floats, step_ms: int) -> Summary:
    """Sum up samples: (rows,) ascending times and (rows, columns) values, at least one row."""
    starts, bucket_ms = buckets_of(times_ms, step_ms)
    ends = np.append(starts[1:], len(times_ms)) - 1
    correction = np.zeros((len(starts), values.shape[1]))
    apart = np.diff(times_ms // MINUTE_MS) > MOST_MINUTES_APART
    with np.errstate(all="ignore"):
        fell = values[1:] < values[:-1]
        # Counters hardly ever fall, so most columns need no sums at all.
        some = np.arange(values.shape[1]) if apart.any() else np.flatnonzero(fell.any(axis=0))
        if len(some):
            before, after = values[:-1, some], values[1:, some]
            lost = np.zeros((len(values), len(some)))
            np.copyto(lost[1:], before, where=fell[:, some])
            lost[1:][apart] = before[apart] - after[apart]
            correction[:, some] = np.add.reduceat(lost, starts, axis=0)
    return Summary(bucket_ms, values[0], values[ends], correction)


def summarise_spread(times_ms: NDArray[np.int64], values: Floats, step_ms: int) -> Spread:
    """The rest of the sums, for the same buckets as :func:`summarise`."""
    starts, _ = buckets_of(times_ms, step_ms)
    is_number = ~np.isnan(values)
    with np.errstate(all="ignore"):
        return Spread(
            np.fmin.reduceat(values, starts, axis=0),
            np.fmax.reduceat(values, starts, axis=0),
            np.add.reduceat(np.where(is_number, values, 0.0), starts, axis=0),
            np.add.reduceat(is_number.astype(np.float64), starts, axis=0),
        )


class Buckets:
    """Buckets of ascending times, found only once for series that share an array of times.

    Args:
        step_ms: Length of a bucket.
    """

    def __init__(self, step_ms: int) -> None:
        self.step_ms = step_ms
        self._times: NDArray[np.int64] | None = None
        self._found: tuple[NDArray[np.intp], NDArray[np.int64]]

    def of(self, times_ms: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """The last sample of each bucket, and the time at which the bucket begins."""
        if times_ms is not self._times:
            starts, bucket_ms = buckets_of(times_ms, self.step_ms)
            self._times, self._found = times_ms, (np.append(starts[1:], len(times_ms)) - 1, bucket_ms)
        return self._found


def buckets_of(times_ms: NDArray[np.int64], step_ms: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Where each bucket of ascending times (at least one) begins, and the time at which it does."""
    first, last = int(times_ms[0]) // step_ms, int(times_ms[-1]) // step_ms
    if last - first < len(times_ms) // _MANY_PER_BUCKET:
        # Looking for a few borders is faster than giving every sample the number of its bucket.
        bucket_ms = np.arange(first, last + 1, dtype=np.int64) * step_ms
        starts = np.searchsorted(times_ms, bucket_ms)
        filled = np.append(starts[1:], len(times_ms)) > starts
        return (starts, bucket_ms) if filled.all() else (starts[filled], bucket_ms[filled])
    numbers = times_ms // step_ms
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers)) + 1))
    return starts, numbers[starts] * step_ms
