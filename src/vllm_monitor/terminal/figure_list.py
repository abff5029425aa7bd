"""Which figures the screen shows, in which order, and how each is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_monitor.terminal import format as human

__all__ = ["COMPACT", "FULL", "TRACKED", "Figure"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table of figures.

    Args:
        label: What the row is called.
        name: Canonical name of the value that is drawn and compared.
        write: Makes the value readable.
        beside: Canonical name of a value written before it (p50 beside p95); may be empty.
        limit: Canonical name of the most it can be, written after it; may be empty.
        top: The value of full height in the sparkline; the largest one shown, when ``None``.
    """

    label: str
    name: str
    write: Callable[[float | None], str]
    beside: str = ""
    limit: str = ""
    top: float | None = None


def _quantiles(label: str, family: str) -> Figure:
    return Figure(f"{label} p50/p95", f"{family}_p95_seconds", human.latency, f"{family}_p50_seconds")


def _quantile(label: str, family: str, quantile: str) -> Figure:
    return Figure(f"{label} {quantile}", f"{family}_{quantile}_seconds", human.latency)


_LOAD = (
    Figure("tokens/s", "generation_tokens_per_second", human.rate),
    Figure("running", "requests_running", human.count),
    Figure("waiting", "requests_waiting", human.count),
    Figure("KV cache", "kv_cache_usage_ratio", human.ratio, top=1.0),
)
_FLOW = (
    Figure("finished/s", "requests_finished_per_second", human.rate),
    Figure("failed/s", "requests_failed_per_second", human.rate),
    Figure("rejected/s", "admission_rejections_per_second", human.rate),
    Figure("preempted/s", "preemptions_per_second", human.rate),
    Figure("steps/s", "engine_steps_per_second", human.rate),
    Figure("prompt tok/s", "prompt_tokens_per_second", human.rate),
    Figure("prefix hits", "prefix_cache_hit_ratio", human.ratio, top=1.0),
    Figure("HTTP req/s", "http_requests_per_second", human.rate),
    Figure("canary", "canary_latency_seconds", human.latency),
    Figure("API memory", "api_resident_memory_bytes", human.byte_count),
    Figure("API fds/max", "api_open_fds", human.count, limit="api_max_fds"),
)

COMPACT: tuple[Figure, ...] = (
    *_LOAD,
    _quantiles("TTFT", "time_to_first_token"),
    _quantiles("ITL", "inter_token_latency"),
    _quantiles("queue", "request_queue_time"),
    _quantiles("e2e", "e2e_request_latency"),
    *_FLOW,
)
"""For small screens: both quantiles of a latency in one row, the most telling rows first."""

FULL: tuple[Figure, ...] = (
    *_LOAD,
    _quantile("TTFT", "time_to_first_token", "p50"),
    _quantile("TTFT", "time_to_first_token", "p95"),
    _quantile("ITL", "inter_token_latency", "p50"),
    _quantile("ITL", "inter_token_latency", "p95"),
    _quantile("queue", "request_queue_time", "p50"),
    _quantile("queue", "request_queue_time", "p95"),
    _quantile("e2e", "e2e_request_latency", "p50"),
    _quantile("e2e", "e2e_request_latency", "p95"),
    *_FLOW,
)
"""For tall screens: each quantile with a sparkline of its own."""

TRACKED: tuple[str, ...] = tuple(dict.fromkeys(figure.name for figure in FULL))
"""Canonical names whose recent values are remembered."""
