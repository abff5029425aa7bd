"""The clients of the background load: they send, wait, and hang up."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import count

from vllm_monitor.simulator.request import Request
from vllm_monitor.simulator.workload import Workload

__all__ = ["BackgroundClients"]


class BackgroundClients:
    """Sends what a workload makes and keeps the clients' patience. Not thread-safe.

    Attributes:
        sent: Requests sent.
        timed_out: Clients that hung up.
        failed: Requests that ended with an error, those of HTTP clients included.
        refused: Requests that found the port closed.

    The counts are ground truth that no metrics page shows.

    Args:
        workload: Makes the requests.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.sent = 0
        self.timed_out = 0
        self.failed = 0
        self.refused = 0
        self._deadlines: list[tuple[float, int, Request]] = []
        self._order = count()

    @property
    def next_at(self) -> float:
        """When one of them does something next; infinity when none will."""
        return min(self.workload.next_at, self._next_deadline())

    def send_due(self, now: float) -> Iterator[Request]:
        """Requests that arrive up to ``now``."""
        while self.workload.next_at <= now:
            self.sent += 1
            yield self.workload.take()

    def wait_for(self, request: Request) -> None:
        """The request was taken in; its client waits as long as its patience lasts."""
        heapq.heappush(self._deadlines, (request.gives_up_at, next(self._order), request))

    def give_up_due(self, now: float) -> Iterator[Request]:
        """Requests whose clients hang up, up to ``now``."""
        while self._next_deadline() <= now:
            self.timed_out += 1
            yield heapq.heappop(self._deadlines)[2]

    def _next_deadline(self) -> float:
        while self._deadlines and self._deadlines[0][2].is_over:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf
