"""Saturation: how much of each capacity is in use.

A capacity that no page tells (places in the batch, tokens per second) is taken as the most that was seen of late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import SIGNALS, Features
from vllm_monitor.predictive_failure_detection.plain_state import array_of

__all__ = ["Saturation"]

MEMORY_SECONDS = 7_200.0
_MOST = ("requests_running", "generation_tokens_per_second", "prompt_tokens_per_second", "requests_finished_per_second")
_PLACES = [SIGNALS.index(name) for name in _MOST]


class Saturation:
    """Levels of what runs out, against limits that are known or were seen."""

    name = "saturation"
    outputs = (
        "kv_level",
        "kv_high",
        "kv_full",
        "waiting_level",
        "is_waiting",
        "batch_share",
        "tokens_share",
        "prompt_share",
        "preempting",
        "queueing",
        "first_token_level",
        "inter_token_level",
        "slowdown",
        "fds_level",
        "memory_level",
        "failing_answers",
        "refusing",
        "scrape_slow",
        "host_pressed",
        "waiting_and_full",
        "accept_queue",
        "memory_size",
        "memory_growing",
    )

    def __init__(self) -> None:
        self._most = np.zeros(len(_MOST))
        self._at: float | None = None

    def score(self, features: Features) -> NDArray[np.float64]:
        """Each level, 0 (nothing in use) to 1 (all of it)."""
        value, facts = features.value, features.facts
        kv, waiting = value("kv_cache_usage_ratio", 0.0), max(0.0, value("requests_waiting", 0.0))
        running = max(1.0, value("requests_running", 0.0))
        shares = np.nan_to_num(features.levels[_PLACES] / np.maximum(self._most, 1.0))
        host = max(value("host_cpu_pressure_percent", 0.0) / 100.0, value("host_memory_pressure_percent", 0.0) / 50.0)
        limit, memory = facts.get("memory_limit_bytes", math.nan), value("api_resident_memory_bytes")
        most = limit if math.isfinite(limit) else memory + value("host_memory_available_bytes")
        found = np.array(
            [
                kv,
                (kv - 0.6) / 0.4,
                (kv - 0.9) / 0.1,
                math.log1p(waiting) / 5.0,
                1.0 if waiting > 0 else 0.0,
                shares[0] if self._most[0] >= 4 else 0.0,
                shares[1],
                shares[2],
                math.log1p(10.0 * max(0.0, value("preemptions_per_second", 0.0))) / 5.0,
                _against(value("request_queue_time_p50_seconds", 0.0), 0.3, 10.0),
                _against(value("time_to_first_token_p95_seconds", 0.0), 1.0, facts.get("ttft_objective_seconds", 2.0)),
                _against(
                    value("inter_token_latency_p95_seconds", 0.0), 1.0, facts.get("inter_token_objective_seconds", 0.2)
                ),
                (facts.get("slowdown_ratio", 1.0) - 1.0) / 2.0,
                value("api_open_fds", 0.0) / value("api_max_fds", math.inf),
                memory / most if most > 0 else 0.0,
                math.log1p(10.0 * max(0.0, value("http_server_errors_per_second", 0.0))) / 4.0,
                math.log1p(10.0 * max(0.0, value("admission_rejections_per_second", 0.0))) / 4.0,
                math.log1p(20.0 * max(0.0, value("scrape_duration_seconds", 0.0))) / 4.0,
                host,
                kv * min(1.0, waiting / running),
                math.log1p(max(0.0, value("listen_queue", 0.0))) / 3.0,
                math.log1p(max(0.0, memory) / 1e9) / 4.0,
                math.log1p(max(0.0, value("api_resident_memory_growth_seconds", 0.0)) / 20.0) / 5.0,
            ]
        )
        return np.asarray(np.clip(np.nan_to_num(found), 0.0, 1.0))

    def learn(self, features: Features) -> None:
        """Remember the most that was seen, slowly forgotten."""
        seconds = 0.0 if self._at is None else min(60.0, max(0.0, features.timestamp - self._at))
        self._at = features.timestamp
        self._most *= math.exp(-seconds / MEMORY_SECONDS)
        self._most = np.maximum(self._most, np.nan_to_num(features.levels[_PLACES]))

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {"most": self._most.copy(), "at": self._at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        most, at = array_of(state.get("most"), self._most.shape), state.get("at")
        if most is not None:
            self._most, self._at = most, float(at) if isinstance(at, int | float) else None


def _against(value: float, low: float, limit: float) -> float:
    """0 at ``low / 10`` of the limit, 0.5 at half of it, 1 at three times the limit, on a logarithmic scale."""
    share = max(0.0, value) / limit
    return 0.5 + math.log(max(share, 1e-6) / 0.5) / (2.0 * math.log(6.0)) if share > 0.05 * low else 0.0
