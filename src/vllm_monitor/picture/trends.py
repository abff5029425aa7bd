"""Slow movements of a few figures: growth over the last half minute, and what a ratio usually is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

__all__ = ["Trends"]

GROWTH_SECONDS = 30.0
LEAST_POINTS = 6
MOST_VANISHED = 1e15
USUAL_SECONDS = 3_600.0
"""Time constant of what a ratio usually is."""


class _Growth:
    """The slope of a figure over a window, and for how long it has been rising without a fall."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()
        self._rising_since: float | None = None
        self.rising_seconds = 0.0

    def add(self, at: float, value: float) -> None:
        if self._points and at < self._points[-1][0]:
            self._points.clear()
            self._rising_since = None
        before = self._points[-1][1] if self._points else value
        if value < before:
            self._rising_since = None
        elif value > before and self._rising_since is None:
            self._rising_since = self._points[-1][0]
        self.rising_seconds = 0.0 if self._rising_since is None else at - self._rising_since
        self._points.append((at, value))
        while self._points[0][0] < at - GROWTH_SECONDS:
            self._points.popleft()

    @property
    def slope(self) -> float | None:
        """Least squares, per second; ``None`` while there are too few points."""
        if len(self._points) < LEAST_POINTS:
            return None
        count = len(self._points)
        mean_at = math.fsum(at for at, _ in self._points) / count
        mean = math.fsum(value for _, value in self._points) / count
        spread = math.fsum((at - mean_at) ** 2 for at, _ in self._points)
        if spread <= 0:
            return None
        return math.fsum((at - mean_at) * (value - mean) for at, value in self._points) / spread


class Trends:
    """Follows a few figures of one server, page by page. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self._memory = _Growth()
        self._waiting = _Growth()
        self._vanished = _Growth()
        self._hit_ratio: float | None = None
        self._at: float | None = None

    def clear(self) -> None:
        """A new server process: only what is usual stays."""
        self._memory, self._waiting, self._vanished = _Growth(), _Growth(), _Growth()

    def add(self, at: float, values: Mapping[str, float]) -> None:
        """Take in the figures of a page.

        Args:
            at: Unix seconds of the page.
            values: Canonical names and values.
        """
        for name, growth in (("api_resident_memory_bytes", self._memory), ("requests_waiting", self._waiting)):
            if name in values and math.isfinite(values[name]):
                growth.add(at, values[name])
        begun, ended = values.get("requests_first_token_total"), values.get("requests_finished_total")
        if begun is not None and ended is not None:
            # vLLM does not count clients that go away: what began, did not finish and does not run has vanished.
            vanished = begun - ended - values.get("requests_running", 0.0)
            if abs(vanished) <= MOST_VANISHED:
                self._vanished.add(at, vanished)
        ratio = values.get("prefix_cache_hit_ratio")
        if ratio is not None and math.isfinite(ratio):
            seconds = 0.0 if self._at is None else max(0.0, at - self._at)
            weight = 1.0 if self._hit_ratio is None else 1.0 - math.exp(-seconds / USUAL_SECONDS)
            self._hit_ratio = ratio if self._hit_ratio is None else self._hit_ratio + weight * (ratio - self._hit_ratio)
        self._at = at

    def values(self) -> dict[str, float]:
        """What is known of them, by canonical name."""
        found: dict[str, float | None] = {
            "api_resident_memory_growth_bytes_per_second": self._memory.slope,
            "api_resident_memory_growth_seconds": self._memory.rising_seconds
            if self._memory.slope is not None
            else None,
            "requests_waiting_growth_per_second": self._waiting.slope,
            "requests_vanished_per_second": self._vanished.slope,
            "prefix_cache_hit_ratio_usual": self._hit_ratio,
        }
        return {name: value for name, value in found.items() if value is not None}
