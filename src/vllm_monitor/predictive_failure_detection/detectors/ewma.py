"""EWMA and streaming quantiles: how unusual each figure is against its own past.

Exponentially weighted moving averages after Roberts, "Control chart tests based on geometric moving averages",
Technometrics 1, 1959; the statistics themselves are those of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import SIGNALS, Features

__all__ = ["Ewma"]

_UP = (
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "http_requests_per_second",
    "prompt_tokens_per_second",
    "time_to_first_token_p50_seconds",
    "time_to_first_token_p95_seconds",
    "inter_token_latency_p50_seconds",
    "inter_token_latency_p95_seconds",
    "request_queue_time_p50_seconds",
    "request_prefill_time_p95_seconds",
    "api_resident_memory_bytes",
    "api_open_fds",
    "scrape_duration_seconds",
    "established_connections",
)
_DOWN = ("generation_tokens_per_second", "engine_steps_per_second", "requests_finished_per_second")
_UP_AT = [SIGNALS.index(name) for name in _UP]
_DOWN_AT = [SIGNALS.index(name) for name in _DOWN]
_SLOPES = (
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "http_requests_per_second",
    "prompt_tokens_per_second",
    "time_to_first_token_p95_seconds",
    "inter_token_latency_p50_seconds",
    "inter_token_latency_p95_seconds",
    "engine_steps_per_second",
    "api_resident_memory_bytes",
)
_SLOPES_AT = [SIGNALS.index(name) for name in _SLOPES]
_SLOPE_SCALE = np.array([10.0, 30.0, 120.0])[:, None]


class Ewma:
    """Distance above (for some figures below) what is usual, and how fast it changes."""

    name = "ewma"
    outputs = (
        *(f"{name}_unusual" for name in _UP),
        *(f"{name}_unusually_low" for name in _DOWN),
        *(f"{name}_slope_{seconds}s" for seconds in (12, 45, 180) for name in _SLOPES),
    )

    def score(self, features: Features) -> NDArray[np.float64]:
        """5 standard deviations are 0.5; a doubling (on a logarithmic scale) in about three time constants is 0.6."""
        z = features.z
        slopes = features.slopes[:, _SLOPES_AT] * _SLOPE_SCALE
        slopes[:, _SLOPES.index("engine_steps_per_second")] *= -1.0
        return np.concatenate(
            [
                np.clip(z[_UP_AT] / 10.0, 0.0, 1.0),
                np.clip(-z[_DOWN_AT] / 10.0, 0.0, 1.0),
                np.clip(slopes.ravel(), 0.0, 1.0),
            ]
        )

    def learn(self, features: Features) -> None:
        """Nothing: the features learn."""

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
