"""How a server's figures were, by load: mean, spread and quantiles of each, learned one page at a time.

Load is the number of requests in the batch, in steps of two (1, 2 to 3, 4 to 7 ...), so that later figures are compared
with those at equal load. Quantiles come from a bounded reservoir (Vitter's algorithm R, 1985), mean and variance from
Welford's recurrence (1962).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import Any

from vllm_monitor.clock import make_random

__all__ = ["PROFILED", "ProfileBuilder", "load_level"]

PROFILED: Mapping[str, int] = {
    "time_to_first_token_p50_seconds": 1,
    "time_to_first_token_p95_seconds": 1,
    "inter_token_latency_p50_seconds": 1,
    "inter_token_latency_p95_seconds": 1,
    "e2e_request_latency_p50_seconds": 1,
    "e2e_request_latency_p95_seconds": 1,
    "request_queue_time_p95_seconds": 1,
    "generation_tokens_per_second": -1,
    "prompt_tokens_per_second": 0,
    "requests_waiting": 1,
    "kv_cache_usage_ratio": 1,
    "preemptions_per_second": 1,
    "prefix_cache_hit_ratio": -1,
    "requests_failed_per_second": 1,
    "api_resident_memory_bytes": 1,
    "api_cpu_ratio": 1,
}
"""Canonical metric to what is worse: more (1), less (-1), or neither (0)."""
QUANTILES = (0.05, 0.5, 0.95)
RESERVOIR = 512


def load_level(values: Mapping[str, float]) -> str | None:
    """The load level of a page: ``0``, ``1``, ``2-3``, ``4-7`` ... requests in the batch; ``None`` when unknown."""
    running = values.get("requests_running")
    if running is None or not math.isfinite(running) or running < 0:
        return None
    if running < 1:
        return "0"
    low = 1 << (int(running).bit_length() - 1)
    return str(low) if low == 1 else f"{low}-{2 * low - 1}"


class _Figure:
    """Count, mean, variance and a reservoir of one figure."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._kept: list[float] = []

    def add(self, value: float, random: Random) -> None:
        self.count += 1
        delta = value - self._mean
        self._mean += delta / self.count
        self._squares += delta * (value - self._mean)
        if len(self._kept) < RESERVOIR:
            self._kept.append(value)
        elif (at := random.randrange(self.count)) < RESERVOIR:
            self._kept[at] = value

    def values(self) -> dict[str, float]:
        ordered = sorted(self._kept)
        found = {
            "count": float(self.count),
            "mean": self._mean,
            "std": math.sqrt(max(0.0, self._squares / (self.count - 1))) if self.count > 1 else 0.0,
        }
        for quantile in QUANTILES:
            place = quantile * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            found[f"p{quantile * 100:02.0f}"] = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
        return found


class ProfileBuilder:
    """Makes a metrics profile of pages. Not thread-safe: one owner.

    Args:
        seed: Of the reservoirs: the same pages and seed give the same profile.
    """

    def __init__(self, seed: int = 0) -> None:
        self.pages = 0
        self._random = make_random(seed)
        self._figures: dict[str, dict[str, _Figure]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the canonical values of one page; one whose load is not known tells nothing."""
        level = load_level(values)
        if level is None:
            return
        self.pages += 1
        for name in PROFILED:
            value = values.get(name)
            if value is not None and math.isfinite(value):
                self._figures.setdefault(name, {}).setdefault(level, _Figure()).add(value, self._random)

    def profile(self) -> dict[str, Any]:
        """Metric to load level to ``count``, ``mean``, ``std``, ``p05``, ``p50``, ``p95``."""
        return {
            name: {level: figure.values() for level, figure in sorted(levels.items(), key=lambda one: _low(one[0]))}
            for name, levels in self._figures.items()
        }


def _low(level: str) -> int:
    return int(level.partition("-")[0])
