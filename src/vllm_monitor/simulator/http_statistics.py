"""What the HTTP front counts about ``/v1`` requests."""

from __future__ import annotations

from vllm_monitor.simulator.catalogue import BUCKETS, HTTP_HANDLERS, HTTP_REQUEST_ROWS
from vllm_monitor.simulator.histogram import Histogram
from vllm_monitor.simulator.statistics import Readings

__all__ = ["HttpStatistics"]

_BYTES_PER_TOKEN = 4
_BYTES_PER_EVENT = 180


class HttpStatistics:
    """Counters and histograms of HTTP requests; they move even while the engine is frozen."""

    def __init__(self) -> None:
        self.requests = 0
        self._statuses = dict.fromkeys(HTTP_REQUEST_ROWS, 0)
        self._durations = {row: Histogram(BUCKETS["http_request_duration_seconds"]) for row in HTTP_HANDLERS}
        self._fine_durations = Histogram(BUCKETS["http_request_duration_highr_seconds"])
        self._request_bytes = {handler: [0, 0] for handler, _ in HTTP_HANDLERS}
        self._response_bytes = {handler: [0, 0] for handler, _ in HTTP_HANDLERS}

    def completion(self, status: str, duration_seconds: float, prompt_tokens: int, generated: int) -> None:
        """Count one request to ``/v1/completions``; ``status`` is ``2xx``, ``4xx`` or ``5xx``."""
        sent = _BYTES_PER_TOKEN * prompt_tokens + 80
        self.observe(("/v1/completions", "POST"), status, duration_seconds, sent, _BYTES_PER_EVENT * (generated + 1))

    def observe(
        self,
        handler: tuple[str, str],
        status: str,
        duration_seconds: float,
        request_bytes: int,
        response_bytes: int,
    ) -> None:
        """Count one request; ``handler`` is path and method, one of ``HTTP_HANDLERS``."""
        path, method = handler
        self.requests += 1
        self._statuses[path, method, status] += 1
        self._durations[handler].observe(duration_seconds)
        self._fine_durations.observe(duration_seconds)
        for sizes, size in ((self._request_bytes, request_bytes), (self._response_bytes, response_bytes)):
            sizes[path][0] += 1
            sizes[path][1] += size

    def readings(self) -> Readings:
        """All of it, as the page shows it."""
        return {
            "http_requests_total": [float(count) for count in self._statuses.values()],
            "http_request_size_bytes": _flat(self._request_bytes),
            "http_response_size_bytes": _flat(self._response_bytes),
            "http_request_duration_highr_seconds": self._fine_durations.samples(),
            "http_request_duration_seconds": [
                value for histogram in self._durations.values() for value in histogram.samples()
            ],
        }


def _flat(sizes: dict[str, list[int]]) -> list[float]:
    return [float(value) for pair in sizes.values() for value in pair]
