"""How much slower a server is than it usually is at its load."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from vllm_monitor.failures.definitions import SLOWDOWN_RATIO
from vllm_monitor.failures.load_baseline import LoadBaseline

__all__ = ["Slowdown"]

WINDOW_SECONDS = 60.0
"""What the picture's quantiles look back on: load and speed must be of the same time."""


class Slowdown:
    """The median time between tokens of a server against what is usual at its load. Not thread-safe: one owner.

    The load is the mean number of requests that ran over the window in which the median was taken, each counted with
    the tokens it brought, that is with itself: after a busy half minute both still speak of that.
    """

    def __init__(self) -> None:
        self.baseline = LoadBaseline()
        self._looks: deque[tuple[float, float]] = deque()
        self._sum = self._square_sum = 0.0
        self._load: float | None = None
        self._seconds: float | None = None
        self._ratio: float | None = None

    def forget(self) -> None:
        """Another model or version is served: what was usual says nothing of it."""
        self.baseline = LoadBaseline()

    def observe(self, now: float, values: Mapping[str, float]) -> float | None:
        """One tick: the ratio, ``None`` when it is not known."""
        running, self._seconds = values.get("requests_running"), values.get("inter_token_latency_p50_seconds")
        looks = self._looks
        if looks and now < looks[-1][0]:  # the clock was set back
            looks.clear()
            self._sum = self._square_sum = 0.0
        if running is not None and math.isfinite(running):
            looks.append((now, running))
            self._sum += running
            self._square_sum += running * running
        while looks and looks[0][0] <= now - WINDOW_SECONDS:
            _, gone = looks.popleft()
            self._sum -= gone
            self._square_sum -= gone * gone
        if not looks:
            self._sum = self._square_sum = 0.0
        self._load = self._square_sum / self._sum if self._sum > 0.0 else None
        self._ratio = self.baseline.ratio(self._load, self._seconds)
        return self._ratio

    def learn(self) -> bool:
        """Take in the tick just observed, of a server that is well; whether that taught anything.

        One that is as slow as a failure is not taken in, or a slowdown would become what is usual before it has
        lasted for long enough to be one.
        """
        if self._load is None or self._seconds is None or (self._ratio is not None and self._ratio > SLOWDOWN_RATIO):
            return False
        self.baseline.learn(self._load, self._seconds)
        return True
