"""Extrapolation to a limit: the robust slope of a figure says when it will be there.

The slope is that of Theil and Sen, the median of the slopes between all pairs of points, which a third of wild points
does not move (Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63, 1968); how many pairs
agree on its sign is Kendall's tau.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import Features
from vllm_monitor.predictive_failure_detection.plain_state import array_of

__all__ = ["LIMITED", "Extrapolation"]

POINTS = 16
WINDOWS = (20.0, 90.0, 360.0)
LEAST_POINTS = 4
LIMITED = (
    "kv_cache_usage_ratio",
    "requests_waiting",
    "time_to_first_token_p95_seconds",
    "inter_token_latency_p95_seconds",
    "api_resident_memory_bytes",
    "api_open_fds",
)
"""Figures that have a limit; where it is known, how long it takes to get there is known, too."""
_SHORT = ("kv", "waiting", "first_token", "inter_token", "memory", "fds")
_PAIRS = [np.triu_indices(count, 1) for count in range(POINTS + 2)]
"""All pairs of so many points."""
_MEMORY = LIMITED.index("api_resident_memory_bytes")
_NEARNESS_SECONDS = 150.0


class Extrapolation:
    """Time until a figure with a limit reaches it, over three windows of time."""

    name = "extrapolation"
    outputs = (
        *(f"{short}_near_{seconds:.0f}s" for seconds in WINDOWS for short in _SHORT),
        *(f"{short}_rising_{seconds:.0f}s" for seconds in WINDOWS[1:] for short in _SHORT),
        "memory_grown",
    )

    def __init__(self) -> None:
        self._times = np.full((len(WINDOWS), POINTS), np.nan)
        self._values = np.full((len(WINDOWS), len(LIMITED), POINTS), np.nan)

    def score(self, features: Features) -> NDArray[np.float64]:
        """Nearness of each limit (1 at it, 0.37 two and a half minutes away), and how surely each figure rises."""
        now, limits = features.timestamp, limits_of(features)
        levels = np.array([features.value(name) for name in LIMITED])
        known = np.isfinite(levels)
        near = np.zeros((len(WINDOWS), len(LIMITED)))
        rising = np.zeros_like(near)
        for row, window in enumerate(WINDOWS):
            slope, agreement = self._slopes(row, now, levels, window)
            left = np.maximum(limits - levels, 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                seconds = np.where(slope > 0, left / np.where(slope > 0, slope, 1.0), np.inf)
            close = np.exp(-seconds / _NEARNESS_SECONDS) * np.maximum(agreement, 0.0)
            near[row] = np.where(levels >= limits, 1.0, close)
            rising[row] = np.maximum(agreement, 0.0) * (slope > 0)
        near[:, ~known], rising[:, ~known] = 0.0, 0.0
        memory, past = levels[_MEMORY], self._values[-1, _MEMORY]
        oldest = float(np.fmin.reduce(past))
        grown = math.log(memory / oldest) if memory > 0 and oldest > 0 else 0.0
        return np.concatenate([near.ravel(), rising[1:].ravel(), [min(1.0, max(0.0, grown))]])

    def _slopes(
        self, row: int, now: float, levels: NDArray[np.float64], window: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Slope per second of each figure over a window, and how far the pairs agree on its sign, -1 to 1."""
        times, values = self._times[row], self._values[row]
        usable = (times >= now - 1.5 * window) & (times < now)  # NaN is neither; what is too old stands in front
        count = int(usable.sum()) + 1
        if count < LEAST_POINTS:
            return np.zeros(len(LIMITED)), np.zeros(len(LIMITED))
        points = np.append(times[usable], now)
        seen = np.concatenate([values[:, usable], levels[:, None]], axis=1)
        first, second = _PAIRS[count]
        slopes = (seen[:, second] - seen[:, first]) / (points[second] - points[first])
        slopes[~np.isfinite(slopes)] = 0.0
        middle = slopes.shape[1] // 2
        return np.partition(slopes, middle, axis=1)[:, middle], np.sign(slopes).mean(axis=1)

    def learn(self, features: Features) -> None:
        """Keep a point in each window whose last one is old enough."""
        now = features.timestamp
        levels = np.array([features.value(name) for name in LIMITED])
        levels[~np.isfinite(levels)] = np.nan
        for row, window in enumerate(WINDOWS):
            times = self._times[row]
            newest = np.nanmax(times) if np.isfinite(times).any() else -math.inf
            if now < newest or now - newest > 3.0 * window:
                times[:] = np.nan
                newest = -math.inf
            if now - newest >= 0.999 * window / POINTS:
                times[:-1], times[-1] = times[1:].copy(), now
                self._values[row, :, :-1] = self._values[row, :, 1:].copy()
                self._values[row, :, -1] = levels

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {"times": np.nan_to_num(self._times, nan=-1.0), "values": np.nan_to_num(self._values, nan=-1.0)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        times = array_of(state.get("times"), self._times.shape)
        values = array_of(state.get("values"), self._values.shape)
        if times is not None and values is not None:
            self._times = np.where(times < 0, np.nan, times)
            self._values = np.where(values < 0, np.nan, values)


def limits_of(features: Features) -> NDArray[np.float64]:
    """Where each figure has failed, in the order of :data:`LIMITED`; infinite where nobody knows."""
    memory = features.value("api_resident_memory_bytes")
    known = features.facts.get("memory_limit_bytes", math.nan)
    available = features.value("host_memory_available_bytes")
    most = known if math.isfinite(known) else memory + available
    return np.array(
        [
            0.98,
            10.0,
            features.facts.get("ttft_objective_seconds", 2.0),
            features.facts.get("inter_token_objective_seconds", 0.2),
            0.97 * most if math.isfinite(most) else math.inf,
            0.95 * features.value("api_max_fds", math.inf),
        ]
    )
