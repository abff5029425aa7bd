"""One life of the server: from the moment its port opens until the process ends."""

from __future__ import annotations

import random

from vllm_monitor.simulator.engine import Engine
from vllm_monitor.simulator.http_statistics import HttpStatistics
from vllm_monitor.simulator.process import ProcessModel
from vllm_monitor.simulator.request import Request
from vllm_monitor.simulator.settings import ServerSettings
from vllm_monitor.simulator.statistics import EngineStatistics, Readings

__all__ = ["ServerLife"]

_SCRAPE_SECONDS = 0.005


class ServerLife:
    """Engine, HTTP front and process, which begin and end together. Not thread-safe.

    Args:
        settings: The server's settings.
        generator: Randomness of the engine.
        ready_at: Simulated time at which the port opens.
        process_started_at_unix_seconds: When the process began to load.
    """

    def __init__(
        self,
        settings: ServerSettings,
        generator: random.Random,
        *,
        ready_at: float,
        process_started_at_unix_seconds: float,
    ) -> None:
        self.ready_at = ready_at
        self.statistics = EngineStatistics()
        self.http = HttpStatistics()
        self.process = ProcessModel(process_started_at_unix_seconds)
        self.engine = Engine(settings.engine, self.statistics, generator, ready_at, self._on_finish)
        self.finished_requests = 0
        self._in_flight: dict[Request, None] = {}

    @property
    def in_flight(self) -> int:
        """Requests whose clients are still connected."""
        return len(self._in_flight)

    @property
    def scrape_latency_seconds(self) -> float:
        """How long the API server takes for a page; its event loop chokes on hundreds of open streams."""
        crowd = self.in_flight
        return min(10.0, _SCRAPE_SECONDS * (1.0 + crowd / 50.0 + (crowd / 60.0) ** 4))

    def accept(self, request: Request) -> None:
        """Take a new request in."""
        self._in_flight[request] = None
        self.engine.submit(request)

    def client_gone(self, request: Request, now: float) -> None:
        """The client hung up: the HTTP front sees a finished exchange, the engine is told to forget it."""
        request.abandoned = True
        self._leave(request, now)
        self.engine.abandon(request)

    def fail_all(self, message: str, now: float) -> int:
        """Every open stream ends with an error inside its HTTP 200; returns how many there were."""
        failed = list(self._in_flight)
        for request in failed:
            request.failure = message
            self._leave(request, now)
        return len(failed)

    def readings(self, now: float) -> Readings:
        """Everything the metrics page shows at simulated time ``now``."""
        statistics = self.statistics
        return {
            **self.process.readings(
                now,
                uptime=now - self.ready_at,
                in_flight=self.in_flight,
                requests=self.http.requests,
                tokens=statistics.prompt_tokens + statistics.generation_tokens,
            ),
            **statistics.readings(),
            **self.http.readings(),
        }

    def _on_finish(self, request: Request) -> None:
        self.finished_requests += 1
        self._leave(request, request.last_token_at)

    def _leave(self, request: Request, now: float) -> None:
        del self._in_flight[request]
        self.http.completion("2xx", now - request.arrived_at, request.prompt_tokens, request.generated)
