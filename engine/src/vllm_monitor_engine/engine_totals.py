"""What one engine has done since this process began, counted from its steps, as the server's own metrics count it.

Whatever a step lacks, as other versions of vLLM may, is left out of the totals; whatever makes no sense is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_monitor_engine.histogram import Histogram

__all__ = ["DEFAULT_BOUNDS", "EngineTotals", "number_of", "reason_of"]

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
DEFAULT_BOUNDS = {
    "time_to_first_token_seconds": LATENCIES,
    "inter_token_latency_seconds": LATENCIES,
    "e2e_request_latency_seconds": LATENCIES,
    "request_queue_time_seconds": LATENCIES,
    "request_prefill_time_seconds": LATENCIES,
    "request_decode_time_seconds": LATENCIES,
}
"""Bounds where the server does not say what its own are."""

ITERATION_LISTS = {
    "time_to_first_token_seconds": "time_to_first_tokens_iter",
    "inter_token_latency_seconds": "inter_token_latencies_iter",
}
REQUEST_FIGURES = {
    "e2e_request_latency_seconds": "e2e_latency",
    "request_queue_time_seconds": "queued_time",
    "request_prefill_time_seconds": "prefill_time",
    "request_decode_time_seconds": "decode_time",
}
SCHEDULER_FIGURES = {
    "num_requests_running": "num_running_reqs",
    "num_requests_waiting": "num_waiting_reqs",
    "num_requests_deferred": "num_skipped_waiting_reqs",
    "kv_cache_usage_perc": "kv_cache_usage",
}


class EngineTotals:
    """Counters, histograms and latest figures of one engine. Not thread-safe.

    Args:
        bounds: Upper bounds of each histogram, by the name of the server's own metric without its prefix.
    """

    def __init__(self, bounds: Mapping[str, Sequence[float]] | None = None) -> None:
        known = {**DEFAULT_BOUNDS, **(bounds or {})}
        self.counters: dict[str, float] = {"steps": 0, "generation_tokens": 0, "finished_requests": 0}
        self.gauges: dict[str, float] = {}
        self.finished: dict[str, int] = {}
        self.histograms = {name: Histogram(known[name]) for name in DEFAULT_BOUNDS}
        self._largest_gap_seconds = 0.0
        self.last_at: float | None = None
        self._was_busy = False

    def add(self, at: float, scheduler: Any, iteration: Any) -> None:
        """Count one step, which ended at ``at`` (seconds of the monotonic clock)."""
        self.counters["steps"] += 1
        if self.last_at is not None and self._was_busy:
            self._largest_gap_seconds = max(self._largest_gap_seconds, at - self.last_at)
        self.last_at = at
        if scheduler is not None:
            for name, attribute in SCHEDULER_FIGURES.items():
                value = number_of(scheduler, attribute)
                if value is not None:
                    self.gauges[name] = value
            self._was_busy = self.in_flight > 0
            cache = getattr(scheduler, "prefix_cache_stats", None)
            self._count("prefix_cache_queries", cache, "queries")
            self._count("prefix_cache_hits", cache, "hits")
        if iteration is None:
            return
        self._count("generation_tokens", iteration, "num_generation_tokens")
        self._count("num_preemptions", iteration, "num_preempted_reqs")
        self._count("prompt_tokens", iteration, "num_prompt_tokens")
        self._count("prompt_tokens_cached", getattr(iteration, "prompt_token_stats", None), "cached_tokens")
        self._count("corrupted_requests", iteration, "num_corrupted_reqs")
        for name, attribute in ITERATION_LISTS.items():
            self.histograms[name].observe(getattr(iteration, attribute, None) or ())
        for request in getattr(iteration, "finished_requests", None) or ():
            self.counters["finished_requests"] += 1
            reason = reason_of(request)
            self.finished[reason] = self.finished.get(reason, 0) + 1
            for name, attribute in REQUEST_FIGURES.items():
                value = number_of(request, attribute)
                if value is not None:
                    self.histograms[name].observe((value,))

    @property
    def in_flight(self) -> float:
        """Requests running and waiting, as the engine last said; 0 when it never did."""
        names = ("num_requests_running", "num_requests_waiting", "num_requests_deferred")
        return sum(self.gauges.get(name, 0) for name in names)

    def take_largest_gap(self) -> float:
        """Largest gap between two steps, in seconds, while requests were in flight, since this was last asked."""
        gap, self._largest_gap_seconds = self._largest_gap_seconds, 0.0
        return gap

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "counters": self.counters,
            "gauges": self.gauges,
            "finished": self.finished,
            "histograms": {name: one.as_json() for name, one in self.histograms.items() if any(one.counts)},
        }

    def _count(self, name: str, source: Any, attribute: str) -> None:
        value = number_of(source, attribute)
        if value is not None and value >= 0:
            self.counters[name] = self.counters.get(name, 0) + value


def reason_of(request: Any) -> str:
    """Why a request ended, as the server's metrics name it: ``stop``, ``length``, ``abort``, ``error`` ..."""
    reason = getattr(request, "finish_reason", None)
    if isinstance(reason, str):
        return reason
    return str(getattr(reason, "name", None) or "unknown").lower()


def number_of(source: Any, attribute: str) -> float | None:
    """A figure of a step or request; ``None`` where it is absent, or no number."""
    value = getattr(source, attribute, None)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:  # no NaN
        return value
    return None
