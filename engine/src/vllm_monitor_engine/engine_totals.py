"""What one engine has done since this process began, counted from its steps, as the server's own metrics count it.

Whatever a step lacks, as other versions of vLLM may, is left out of the totals; whatever makes no sense is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_monitor_engine.histogram import Histogram
from vllm_monitor_engine.request_lines import REQUEST_PATHS, finished_columns
from vllm_monitor_engine.step_buffer import Step
from vllm_monitor_engine.step_columns import ColumnReader, flat, numbers_of, total_of

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

SCHEDULER_PATHS = {
    "num_requests_running": "num_running_reqs",
    "num_requests_waiting": "num_waiting_reqs",
    "num_requests_deferred": "num_skipped_waiting_reqs",
    "kv_cache_usage_perc": "kv_cache_usage",
    "prefix_cache_queries": "prefix_cache_stats.queries",
    "prefix_cache_hits": "prefix_cache_stats.hits",
}
IN_FLIGHT_GAUGES = ("num_requests_running", "num_requests_waiting", "num_requests_deferred")
GAUGES = (*IN_FLIGHT_GAUGES, "kv_cache_usage_perc")
ITERATION_PATHS = {
    "generation_tokens": "num_generation_tokens",
    "num_preemptions": "num_preempted_reqs",
    "prompt_tokens": "num_prompt_tokens",
    "prompt_tokens_cached": "prompt_token_stats.cached_tokens",
    "corrupted_requests": "num_corrupted_reqs",
    "time_to_first_token_seconds": "time_to_first_tokens_iter",
    "inter_token_latency_seconds": "inter_token_latencies_iter",
    "finished_requests": "finished_requests",
    "ended": "iteration_timestamp",
}
SCHEDULER_COUNTERS = ("prefix_cache_queries", "prefix_cache_hits")
ITERATION_COUNTERS = (
    "generation_tokens",
    "num_preemptions",
    "prompt_tokens",
    "prompt_tokens_cached",
    "corrupted_requests",
)
ITERATION_HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds")
REQUEST_HISTOGRAMS = {
    "e2e_request_latency_seconds": "duration_seconds",
    "request_queue_time_seconds": "queue_seconds",
    "request_prefill_time_seconds": "prefill_seconds",
    "request_decode_time_seconds": "decode_seconds",
}


OLD_SECONDS = 2.0
"""What a scheduler said longer ago says nothing, where others are told what it says now."""


class EngineTotals:
    """Counters, histograms and latest figures of one engine. Not thread-safe.

    Args:
        bounds: Upper bounds of each histogram, by the name of the server's own metric without its prefix.
        is_part: Whether other processes see further steps of this engine. What it counts then adds up with theirs. What
            its scheduler says of the whole is told to one of them at each step: so it is neither told on, which would
            double it, nor is anything judged by it.
    """

    def __init__(self, bounds: Mapping[str, Sequence[float]] | None = None, *, is_part: bool = False) -> None:
        known = {**DEFAULT_BOUNDS, **(bounds or {})}
        self._schedulers = ColumnReader(SCHEDULER_PATHS)
        self._iterations = ColumnReader(ITERATION_PATHS)
        self._requests = ColumnReader(REQUEST_PATHS)
        self.counters: dict[str, float] = {"steps": 0, "generation_tokens": 0, "finished_requests": 0}
        self.gauges: dict[str, float] = {}
        self.finished: dict[str, int] = {}
        self.histograms = {name: Histogram(known[name]) for name in DEFAULT_BOUNDS}
        self._largest_gap_seconds = 0.0
        self.last_at: float | None = None
        self._scheduled_at: float | None = None
        self._was_busy = False
        self._is_excused = False
        self._is_part = is_part

    @property
    def faults(self) -> int:
        """How often something of a step was there and could not be read."""
        return self._schedulers.faults + self._iterations.faults + self._requests.faults

    def add(self, steps: Sequence[Step]) -> dict[str, Sequence[Any]]:
        """Count steps, oldest first; returns the requests that finished with them, as columns."""
        times, _, schedulers, iterations = zip(*steps, strict=True)
        of_steps = [at for at, one in zip(times, schedulers, strict=True) if one is not None]
        # Of several API servers that get something out of a step, one is told what its scheduler says.
        self.counters["steps"] += len(of_steps) if self._is_part else len(steps)
        self._scheduled_at = of_steps[-1] if of_steps else self._scheduled_at
        scheduled = self._schedulers.read([one for one in schedulers if one is not None])
        for name in GAUGES:
            newest = numbers_of(scheduled[name][-1:])
            if newest:
                self.gauges[name] = newest[0]
        self._count(SCHEDULER_COUNTERS, scheduled)
        done = self._iterations.read([one for one in iterations if one is not None])
        if self._is_part:
            self._look_for_own_gaps(times, iterations, done["inter_token_latency_seconds"])
        else:
            self._look_for_gaps(times, schedulers, scheduled)
        self._count(ITERATION_COUNTERS, done)
        for name in ITERATION_HISTOGRAMS:
            self.histograms[name].observe(flat(done[name]))
        finished = finished_columns(self._requests, done["finished_requests"], done["ended"])
        for reason in finished.get("reason", ()):
            self.counters["finished_requests"] += 1
            self.finished[reason] = self.finished.get(reason, 0) + 1
        for name, column in REQUEST_HISTOGRAMS.items():
            self.histograms[name].observe(value for value in finished.get(column, ()) if value is not None)
        return finished

    def _look_for_gaps(
        self, times: Sequence[float], schedulers: Sequence[Any], scheduled: Mapping[str, Sequence[Any]]
    ) -> None:
        """Note the largest time between two steps with requests in flight after the first of them."""
        busy = map(any, zip(*(scheduled[name] for name in IN_FLIGHT_GAUGES), strict=True))
        for at, scheduler in zip(times, schedulers, strict=True):
            if self._was_busy and self.last_at is not None and at - self.last_at > self._largest_gap_seconds:
                self._largest_gap_seconds = at - self.last_at
            self.last_at = at
            if scheduler is not None:
                self._was_busy = next(busy)

    def _look_for_own_gaps(self, times: Sequence[float], iterations: Sequence[Any], latencies: Sequence[Any]) -> None:
        """Note the largest time between two steps through which a request of this process was being served."""
        between = iter(latencies)
        for at, iteration in zip(times, iterations, strict=True):
            served = max(numbers_of(flat([next(between)])), default=0.0) if iteration is not None else 0.0
            if self.last_at is not None and not self._is_excused:
                self._largest_gap_seconds = max(self._largest_gap_seconds, min(at - self.last_at, served))
            self._is_excused = False
            self.last_at = at

    def fresh_gauges(self, now: float) -> dict[str, float]:
        """What the engine's scheduler last said, as far as that can still be so.

        Args:
            now: Seconds of the monotonic clock.
        """
        is_old = self._is_part and (self._scheduled_at is None or now - self._scheduled_at > OLD_SECONDS)
        return {} if is_old else dict(self.gauges)

    @property
    def in_flight(self) -> float:
        """Requests running and waiting, as the engine last said; 0 when it never did, or said so of others' too."""
        if self._is_part:
            return 0.0
        return sum(self.gauges.get(name, 0) for name in IN_FLIGHT_GAUGES)

    def take_largest_gap(self) -> float:
        """Largest gap between two steps, in seconds, while requests were in flight, since this was last asked."""
        gap, self._largest_gap_seconds = self._largest_gap_seconds, 0.0
        return gap

    def excuse(self) -> None:
        """The time until the next step is no gap: the engine is paused."""
        self._was_busy = False
        self._is_excused = True

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, which do not change any more: they may wait for the disk."""
        return {
            "counters": dict(self.counters),
            "gauges": {} if self._is_part else dict(self.gauges),
            "finished": dict(self.finished),
            "histograms": {name: one.as_json() for name, one in self.histograms.items() if any(one.counts)},
        }

    def _count(self, names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
        for name in names:
            more = total_of(columns[name])
            if more is not None:
                self.counters[name] = self.counters.get(name, 0) + more
