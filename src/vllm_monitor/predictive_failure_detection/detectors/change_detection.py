"""Change detection: small departures from what is usual, added up until they are beyond chance.

The cumulative sum of Page, "Continuous inspection schemes", Biometrika 41, 1954, on standardised figures; the sum
leaks, so that one that is over is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import SIGNALS, Features
from vllm_monitor.predictive_failure_detection.plain_state import array_of, number_of

__all__ = ["ChangeDetection"]

ALLOWANCE = 1.0
"""Standard deviations that are no change yet."""
LEAK_SECONDS = 240.0
_FIGURES = (
    "inter_token_latency_p50_seconds",
    "time_to_first_token_p50_seconds",
    "http_requests_per_second",
    "prompt_tokens_per_second",
    "requests_running",
    "kv_cache_usage_ratio",
    "api_resident_memory_bytes",
    "api_open_fds",
    "scrape_duration_seconds",
)
_AT = [SIGNALS.index(name) for name in _FIGURES]
_HALF = 60.0
_MOST = 600.0


class ChangeDetection:
    """A leaking cumulative sum for each of a few figures."""

    name = "change_detection"
    outputs = tuple(f"{name}_changed" for name in _FIGURES)

    def __init__(self) -> None:
        self._sums = np.zeros(len(_FIGURES))
        self._at: float | None = None

    def score(self, features: Features) -> NDArray[np.float64]:
        """0.5 when a figure was two standard deviations up for a minute."""
        sums = self._next(features)
        return sums / (sums + _HALF)

    def _next(self, features: Features) -> NDArray[np.float64]:
        seconds = 0.0 if self._at is None else min(30.0, max(0.0, features.timestamp - self._at))
        sums = self._sums * math.exp(-seconds / LEAK_SECONDS) + seconds * (features.z[_AT] - ALLOWANCE)
        return np.clip(sums, 0.0, _MOST)

    def learn(self, features: Features) -> None:
        """Add this tick."""
        self._sums = self._next(features)
        self._at = features.timestamp

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {"sums": self._sums.copy(), "at": self._at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        sums = array_of(state.get("sums"), self._sums.shape)
        if sums is not None and (sums >= 0).all():
            self._sums, self._at = np.minimum(sums, _MOST), number_of(state.get("at"))
