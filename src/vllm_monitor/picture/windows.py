"""Rates and quantiles over a sliding window, with counter resets handled.

Counters are made monotone when they arrive (a fall is a reset and counts from zero, as Prometheus' ``increase``
does), so that a rate over any window is one subtraction. Memory is bounded by the window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable

import numpy as np

from vllm_monitor.picture.columns import Floats

__all__ = ["CounterWindow", "histogram_quantile"]


class CounterWindow:
    """The last ``window_seconds`` of a vector of counters.

    Args:
        window_seconds: How far back :meth:`increase` can look.

    Not thread-safe: one owner.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._points: deque[tuple[float, Floats]] = deque()
        self._last: Floats | None = None
        self._total: Floats | None = None
        self._signature: Hashable = None
        self._step: float | None = None

    def add(self, timestamp: float, counters: Floats, *, signature: Hashable = None, reset: bool = False) -> None:
        """Take in one scrape.

        Args:
            timestamp: Unix seconds. A step backwards forgets the window, since no rate across it means anything.
            counters: Raw counter values; NaN where the page has none.
            signature: What the entries are; a change forgets the window.
            reset: The server restarted: count every entry from zero.
        """
        if self._points and (timestamp <= self._points[-1][0] or signature != self._signature):
            self.clear()
        elif self._points:
            step = timestamp - self._points[-1][0]
            # An average over a hole (or over a clock set forward) is no rate; a long interval is no hole.
            if self._step is not None and step > max(self._window_seconds, 3.0 * self._step):
                self.clear()
            self._step = step
        self._signature = signature
        if self._last is None or self._total is None:
            total = np.zeros_like(counters)
        else:
            with np.errstate(invalid="ignore", over="ignore"):  # a hostile page may hold infinities
                delta = counters - self._last
            fell = delta < 0
            if reset:
                delta = counters
            elif fell.any():
                delta = np.where(fell, counters, delta)
            # NaN: the entry has just appeared or has gone; neither is an increase.
            total = self._total + np.nan_to_num(delta, nan=0.0, posinf=0.0, neginf=0.0)
        self._last, self._total = counters, total
        self._points.append((timestamp, total))
        oldest = timestamp - self._window_seconds
        while len(self._points) > 2 and self._points[1][0] <= oldest:
            self._points.popleft()

    def clear(self) -> None:
        """Forget everything."""
        self._points.clear()
        self._last = self._total = None

    def increase(self, seconds: float) -> tuple[float, Floats] | None:
        """What the counters grew by.

        Args:
            seconds: Over how long, ending at the newest scrape.

        Returns:
            The time really covered, in seconds, and one increase per entry (NaN where the entry is not on the
            page); ``None`` before the second scrape.
        """
        if len(self._points) < 2 or self._last is None:
            return None
        newest_at, newest = self._points[-1]
        start_at, start = self._points[0]
        for at, point in reversed(self._points):
            if at <= newest_at - seconds:
                start_at, start = at, point
                break
        return newest_at - start_at, np.where(np.isnan(self._last), np.nan, newest - start)


def histogram_quantile(
    quantile: float, bounds: Floats, cumulative: Floats, total_sum: float = math.nan
) -> float | None:
    """A quantile from cumulative bucket counts, linear within a bucket.

    The same estimate as Prometheus' ``histogram_quantile``, with one exception:
    https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile
    When all observations lie in the first bucket (queue times of an unloaded server lie between 0 and 0.3 s), a
    straight line through it says 150 ms of what took one. Their mean is known then, and an exponential
    distribution with that mean is assumed.

    Args:
        quantile: 0 to 1.
        bounds: Upper bounds, ascending, the last one infinite.
        cumulative: Observations at or below each bound.
        total_sum: Sum of the observations; NaN when it is not known.

    Returns:
        The estimate in the unit of the bounds; the highest finite bound when the quantile lies above it; ``None``
        without observations.
    """
    if cumulative.size < 2 or not np.isinf(bounds[-1]):
        return None
    total = float(cumulative[-1])
    if not total > 0:
        return None
    counts = np.maximum.accumulate(cumulative)  # a scrape is not atomic: buckets may be one observation apart
    if counts[0] == total and bounds[0] > 0 and total_sum >= 0:
        mean = min(total_sum / total, float(bounds[0]))
        spread = -math.log1p(-quantile) if quantile < 1 else math.inf
        return min(mean * spread, float(bounds[0]))
    rank = quantile * total
    bucket = int(np.searchsorted(counts, rank, side="left"))
    if bucket >= counts.size - 1:
        return float(bounds[-2])
    upper = float(bounds[bucket])
    if bucket == 0 and upper <= 0:
        return upper
    lower = float(bounds[bucket - 1]) if bucket else 0.0
    below = float(counts[bucket - 1]) if bucket else 0.0
    inside = float(counts[bucket]) - below
    return upper if inside <= 0 else lower + (upper - lower) * (rank - below) / inside
