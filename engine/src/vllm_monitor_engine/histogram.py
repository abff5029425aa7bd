"""A cumulative histogram over fixed bounds, as Prometheus counts them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

__all__ = ["Histogram"]


class Histogram:
    """Counts values per bucket. Not thread-safe.

    Args:
        bounds: Upper bounds, ascending, each inclusive; what is above the last is counted in one more bucket.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bound for bound in bounds if math.isfinite(bound))
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, values: Iterable[float]) -> None:
        """Count values; one that is no number is passed over."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            if value == value:  # NaN is the one value that differs from itself
                counts[bisect_left(bounds, value)] += 1
                self.total += value

    def as_json(self) -> dict[str, object]:
        """Bounds, counts per bucket (not yet summed up) and the sum of all values."""
        return {"bounds": self.bounds, "counts": self.counts, "sum": self.total}
