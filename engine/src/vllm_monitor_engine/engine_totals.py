"""What one engine has done since this process began, counted from its steps, as the server's own metrics count it.

Whatever a step lacks, as other versions of vLLM may, is left out of the totals; whatever makes no sense is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_monitor_engine.histogram import Histogram
from vllm_monitor_engine.request_lines import request_columns
from vllm_monitor_engine.step_buffer import Step
from vllm_monitor_engine.step_columns import StepColumns

__all__ = ["DEFAULT_BOUNDS", "EngineTotals"]

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
REQUEST_COLUMNS = {
    "e2e_request_latency_seconds": "duration_seconds",
    "request_queue_time_seconds": "queue_seconds",
    "request_prefill_time_seconds": "prefill_seconds",
    "request_decode_time_seconds": "decode_seconds",
}
SCHEDULER_FIGURES = {
    "num_requests_running": "num_running_reqs",
    "num_requests_waiting": "num_waiting_reqs",
    "num_requests_deferred": "num_skipped_waiting_reqs",
    "kv_cache_usage_perc": "kv_cache_usage",
}
IN_FLIGHT_GAUGES = ("num_requests_running", "num_requests_waiting", "num_requests_deferred")
SCHEDULER_COUNTERS = {
    "prefix_cache_queries": "prefix_cache_stats.queries",
    "prefix_cache_hits": "prefix_cache_stats.hits",
}
ITERATION_COUNTERS = {
    "generation_tokens": "num_generation_tokens",
    "num_preemptions": "num_preempted_reqs",
    "prompt_tokens": "num_prompt_tokens",
    "prompt_tokens_cached": "prompt_token_stats.cached_tokens",
    "corrupted_requests": "num_corrupted_reqs",
}


class EngineTotals:
    """Counters, histograms and latest figures of one engine. Not thread-safe.

    Args:
        bounds: Upper bounds of each histogram, by the name of the server's own metric without its prefix.

    Attributes:
        columns: Reads the steps, and counts what could not be read.
    """

    def __init__(self, bounds: Mapping[str, Sequence[float]] | None = None) -> None:
        known = {**DEFAULT_BOUNDS, **(bounds or {})}
        self.columns = StepColumns()
        self.counters: dict[str, float] = {"steps": 0, "generation_tokens": 0, "finished_requests": 0}
        self.gauges: dict[str, float] = {}
        self.finished: dict[str, int] = {}
        self.histograms = {name: Histogram(known[name]) for name in DEFAULT_BOUNDS}
        self._largest_gap_seconds = 0.0
        self.last_at: float | None = None
        self._last_scheduler: Any = None

    def add(self, steps: Sequence[Step]) -> dict[str, list[Any]]:
        """Count steps, oldest first; returns the requests that finished with them, as columns."""
        self.counters["steps"] += len(steps)
        self._look_for_gaps(steps)
        schedulers = [scheduler for _, _, scheduler, _ in steps if scheduler is not None]
        for name, path in SCHEDULER_FIGURES.items():
            newest = self.columns.numbers(schedulers[-1:], path)
            if newest:
                self.gauges[name] = newest[0]
        self._count(SCHEDULER_COUNTERS, schedulers)
        iterations = [iteration for _, _, _, iteration in steps if iteration is not None]
        self._count(ITERATION_COUNTERS, iterations)
        for name, path in ITERATION_LISTS.items():
            self.histograms[name].observe(self.columns.flattened(iterations, path))
        finished = request_columns(self.columns, iterations)
        for reason in finished.get("reason", ()):
            self.counters["finished_requests"] += 1
            self.finished[reason] = self.finished.get(reason, 0) + 1
        for name, column in REQUEST_COLUMNS.items():
            self.histograms[name].observe(value for value in finished.get(column, ()) if value is not None)
        return finished

    def _look_for_gaps(self, steps: Sequence[Step]) -> None:
        """Note the largest time between two steps with requests in flight after the first of them."""
        for at, _, scheduler, _ in steps:
            gap_seconds = 0.0 if self.last_at is None else at - self.last_at
            if gap_seconds > self._largest_gap_seconds and self._is_busy(self._last_scheduler):
                self._largest_gap_seconds = gap_seconds
            self.last_at = at
            if scheduler is not None:
                self._last_scheduler = scheduler

    def _is_busy(self, scheduler: Any) -> bool:
        return any(self.columns.total((scheduler,), SCHEDULER_FIGURES[name]) for name in IN_FLIGHT_GAUGES)

    @property
    def in_flight(self) -> float:
        """Requests running and waiting, as the engine last said; 0 when it never did."""
        return sum(self.gauges.get(name, 0) for name in IN_FLIGHT_GAUGES)

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

    def _count(self, paths: Mapping[str, str], objects: Sequence[Any]) -> None:
        for name, path in paths.items():
            more = self.columns.total(objects, path)
            if more is not None:
                self.counters[name] = self.counters.get(name, 0) + more
