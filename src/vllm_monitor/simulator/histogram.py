"""A histogram with fixed bucket boundaries."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

__all__ = ["Histogram"]


class Histogram:
    """Counts observations in buckets, as a Prometheus client does.

    Args:
        bounds: Upper bounds of the buckets, ascending, without the last one of infinity.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, ``times`` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self._counts)

    def samples(self) -> list[float]:
        """The values of its sample lines: cumulative buckets, count, sum."""
        cumulative = [float(count) for count in accumulate(self._counts)]
        return [*cumulative, cumulative[-1], self.total]
