"""Features of one server, for all signals at once: level, quantile, z, slope, age; a few microseconds a tick.

Every statistic is exponentially forgotten by time, not by ticks, so that looking every second or every five seconds
means the same. What is usual is learned only while the server is well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.plain_state import array_of, number_of

__all__ = ["SIGNALS", "FeatureExtractor", "Features"]

Floats = NDArray[np.float64]

_SCALES = {
    "requests_running": "log",
    "requests_waiting": "log",
    "kv_cache_usage_ratio": "",
    "generation_tokens_per_second": "log",
    "prompt_tokens_per_second": "log",
    "engine_steps_per_second": "log",
    "requests_finished_per_second": "log",
    "requests_failed_per_second": "log",
    "preemptions_per_second": "log",
    "admission_rejections_per_second": "log",
    "http_requests_per_second": "log",
    "http_server_errors_per_second": "log",
    "http_client_errors_per_second": "log",
    "api_cpu_ratio": "",
    "time_to_first_token_p50_seconds": "milli",
    "time_to_first_token_p95_seconds": "milli",
    "inter_token_latency_p50_seconds": "milli",
    "inter_token_latency_p95_seconds": "milli",
    "request_queue_time_p50_seconds": "milli",
    "request_queue_time_p95_seconds": "milli",
    "request_prefill_time_p95_seconds": "milli",
    "api_resident_memory_bytes": "mega",
    "api_open_fds": "log",
    "scrape_duration_seconds": "milli",
    "health_latency_seconds": "milli",
    "canary_latency_seconds": "milli",
    "established_connections": "log",
    "listen_queue": "log",
    "host_cpu_percent": "",
    "host_cpu_pressure_percent": "",
    "host_memory_pressure_percent": "",
    "host_memory_available_bytes": "mega",
}
SIGNALS: tuple[str, ...] = tuple(_SCALES)
"""Canonical names of the figures that are followed; a server that lacks one has NaN there."""

USUAL_SECONDS = 1_200.0
SLOPE_SECONDS = np.array([[12.0], [45.0], [180.0]])
"""Time constants of the three slopes, one row each."""
LEAST_WEIGHT = 30.0
"""Looks before anything is called unusual."""
MOST_GAP_SECONDS = 120.0
_DIVISOR = np.array([{"mega": 1e6}.get(scale, 1.0) for scale in _SCALES.values()])
_FACTOR = np.array([{"milli": 1e3}.get(scale, 1.0) for scale in _SCALES.values()])
_IS_LOG = np.array([scale != "" for scale in _SCALES.values()])
_FLOOR = np.where(_IS_LOG, 0.08, 0.02)
_FLOOR[[SIGNALS.index(name) for name in SIGNALS if name.endswith("percent")]] = 5.0
MOST_LEVEL = 1e15
"""Nothing is larger; what claims to be is as if it were this."""
_MOST = np.where(_IS_LOG, MOST_LEVEL, 1e4)
_MOST[SIGNALS.index("kv_cache_usage_ratio")] = 2.0
_QUANTILES = np.array([[0.05], [0.5], [0.95]])


@dataclass(frozen=True, slots=True)
class Features:
    """What detectors judge by, at one tick. Arrays follow :data:`SIGNALS`; NaN is "not known".

    Args:
        timestamp: Unix seconds.
        values: Every canonical figure of the tick, by name.
        levels: The figures as they are.
        scaled: The same on a scale on which equal steps mean alike (logarithms of counts, times and bytes).
        z: Distance from what is usual, in its standard deviations, -10 to 10; 0 while that is not known.
        above: Distance above the usual 95th percentile against the usual spread (5th to 95th), 0 to 10.
        slopes: Three rows: slope of ``scaled`` per second over about 12, 45 and 180 seconds.
        known_seconds: How long the server has been followed without a gap.
        is_well: Whether nothing is the matter now, so that this is how it usually is.
        state: Lifecycle state and condition in one word, for the graph of states.
        failures: Failure types that have happened with this tick.
        facts: Anything else that is known: objectives, limits.
    """

    timestamp: float
    values: Mapping[str, float]
    levels: Floats
    scaled: Floats
    z: Floats
    above: Floats
    slopes: Floats
    known_seconds: float
    is_well: bool = True
    state: str = ""
    failures: Sequence[str] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    def value(self, name: str, default: float = math.nan) -> float:
        """A figure, or what to take when it is not known."""
        return self.values.get(name, default)

    def unusual(self, name: str) -> float:
        """The z of a signal."""
        return float(self.z[SIGNALS.index(name)])

    def rate(self, name: str) -> float:
        """Growth of a signal per second in its own unit, over some 12 or 45 seconds, whichever is more."""
        place = SIGNALS.index(name)
        slope, level = float(self.slopes[:2, place].max()), float(self.levels[place])
        if not _IS_LOG[place]:
            return slope
        unit = float(_DIVISOR[place] / _FACTOR[place])
        return slope * (max(level, 0.0) + unit)

    def slope(self, name: str) -> float:
        """Slope of a signal per second over about 45 seconds, where its scale is its own."""
        return float(self.slopes[1, SIGNALS.index(name)])


class FeatureExtractor:
    """Follows one server. Bounded; deterministic; not thread-safe."""

    def __init__(self) -> None:
        count = len(SIGNALS)
        self._at: float | None = None
        self._known_since = 0.0
        self._weight = np.zeros(count)
        self._mean = np.zeros(count)
        self._square = np.zeros(count)
        self._quantiles = np.zeros((3, count))
        # Sums of exponentially weighted least squares, for each time constant: 1, t, x, t*t, t*x; t counts from now.
        self._sums = np.zeros((5, 3, count))

    def observe(
        self,
        now: float,
        values: Mapping[str, float],
        *,
        is_well: bool = True,
        state: str = "",
        failures: Sequence[str] = (),
        facts: Mapping[str, float] | None = None,
    ) -> Features:
        """Take in one tick, and say how it looks against all before it.

        Args:
            now: Unix seconds; a step back or a gap begins the slopes anew.
            values: Canonical figures.
            is_well: Whether this is how the server is to be.
            state: See :class:`Features`.
            failures: Likewise.
            facts: Likewise.
        """
        levels = np.array([values.get(name, math.nan) for name in SIGNALS])
        levels = np.clip(np.where(np.isfinite(levels), levels, np.nan), -MOST_LEVEL, MOST_LEVEL)
        scaled = np.clip(levels / _DIVISOR * _FACTOR, -_MOST, _MOST)
        scaled = np.where(_IS_LOG, np.log1p(np.maximum(scaled, 0.0)), scaled)
        gap = 0.0 if self._at is None else now - self._at
        if self._at is None or not 0.0 <= gap <= MOST_GAP_SECONDS:
            self._sums[:] = 0.0
            self._known_since, gap = now, 0.0
        self._at = now
        z, above = self._compare(scaled)
        if is_well:
            self._learn(scaled, gap)
        slopes = self._slopes(scaled, gap)
        return Features(
            now,
            values,
            levels,
            scaled,
            z,
            above,
            slopes,
            now - self._known_since,
            is_well,
            state,
            failures,
            facts or {},
        )

    def _compare(self, scaled: Floats) -> tuple[Floats, Floats]:
        known = (self._weight >= LEAST_WEIGHT) & ~np.isnan(scaled)
        spread = np.sqrt(np.maximum(self._square - self._mean**2, 0.0))
        z = np.where(known, (scaled - self._mean) / np.maximum(spread, _FLOOR), 0.0)
        low, _, high = self._quantiles
        above = np.where(known, (scaled - high) / np.maximum(high - low, 2 * _FLOOR), 0.0)
        return np.clip(z, -10.0, 10.0), np.clip(above, 0.0, 10.0)

    def _learn(self, scaled: Floats, gap: float) -> None:
        seen = ~np.isnan(scaled)
        value = np.where(seen, scaled, 0.0)
        fresh = seen & (self._weight == 0)
        self._mean[fresh], self._square[fresh] = value[fresh], value[fresh] ** 2
        self._quantiles[:, fresh] = value[fresh]
        self._weight[seen] += 1.0
        share = np.where(seen, np.maximum(1.0 / np.maximum(self._weight, 1.0), 1.0 - math.exp(-gap / USUAL_SECONDS)), 0)
        self._mean += share * (value - self._mean)
        self._square += share * (value**2 - self._square)
        # A step towards the value, as long as the spread tells: stochastic approximation of the quantile
        # (Robbins and Monro, "A stochastic approximation method", 1951).
        spread = np.maximum(np.sqrt(np.maximum(self._square - self._mean**2, 0.0)), _FLOOR)
        step = np.where(seen, np.maximum(share, 0.005) * 3.0 * spread, 0.0)
        self._quantiles += step * (_QUANTILES - (value < self._quantiles))

    def _slopes(self, scaled: Floats, gap: float) -> Floats:
        one, t, x, tt, tx = self._sums
        tt += gap * gap * one - 2.0 * gap * t
        tx -= gap * x
        t -= gap * one
        self._sums *= np.exp(-gap / SLOPE_SECONDS)
        seen = ~np.isnan(scaled)
        one += seen
        x += np.where(seen, scaled, 0.0)
        spread = one * tt - t * t
        enough = spread > 1e-6
        return np.where(enough & seen, (one * tx - t * x) / np.where(enough, spread, 1.0), 0.0)

    def state(self) -> dict[str, Any]:
        """All that it has learned, as values that the store keeps."""
        return {
            "signals": list(SIGNALS),
            "at": self._at,
            "known_since": self._known_since,
            "weight": self._weight.copy(),
            "mean": self._mean.copy(),
            "square": self._square.copy(),
            "quantiles": self._quantiles.copy(),
            "sums": self._sums.copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one that makes no sense, or is of other signals, is left out."""
        signals = state.get("signals")
        if not isinstance(signals, list | tuple) or list(signals) != list(SIGNALS):
            return
        count = len(SIGNALS)
        shapes = {"weight": (count,), "mean": (count,), "square": (count,), "quantiles": (3, count)}
        arrays = {name: array_of(state.get(name), shape) for name, shape in shapes.items()}
        sums, at = array_of(state.get("sums"), (5, 3, count)), number_of(state.get("at"))
        weight, mean, square = (arrays[name] for name in ("weight", "mean", "square"))
        quantiles = arrays["quantiles"]
        if weight is None or mean is None or square is None or quantiles is None or (weight < 0).any():
            return
        self._weight, self._mean, self._square, self._quantiles = weight, mean, square, quantiles
        if sums is not None and at is not None:
            self._sums, self._at = sums, at
            self._known_since = min(at, number_of(state.get("known_since")) or at)
