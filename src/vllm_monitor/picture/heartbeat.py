"""The progress heartbeat: does a token or an engine step advance while requests are in flight?

``/health`` and every gauge of a hung server look healthy (the gauges are frozen at their last value). What cannot
look alive is progress: the counters of tokens and engine steps stand still although somebody waits. Who waits is
taken from the gauges, from file descriptors and connections that pile up (a server that froze in an idle moment
says ``running 0`` for ever), and from our own canary.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from vllm_monitor.picture.columns import EngineColumns, Floats

__all__ = ["Heartbeat", "Pulse"]

PILE_WINDOW_SECONDS = 20.0
PILE_GROWTH = 4
PILE_STEPS = 3


@dataclass(frozen=True, slots=True)
class Pulse:
    """The heartbeat as of the newest page.

    Args:
        progress_age_seconds: How long no engine has advanced, by the pages we saw.
        stuck_seconds: How long an engine has had work by its gauges, or our canary has waited, without progress.
        piling_seconds: How long file descriptors or connections have been piling up without progress; weaker
            evidence, since a client may open connections and ask for nothing.
        in_flight: Requests running or waiting by the gauges.
        stuck_engine: The ``engine`` label of the engine that is stuck, when there are several.
        pile: How many descriptors or connections have piled up.
        canary_timeouts: Our canaries that waited in vain since the last progress.
        longest_gap_seconds: The longest pause between two signs of progress while requests were in flight that
            ended by itself; long prefills make it long.
        ever_progressed: Whether this server process has advanced at all while we watched.
        tokens_served: Whether its counters show that it ever worked.
    """

    progress_age_seconds: float = 0.0
    stuck_seconds: float = 0.0
    piling_seconds: float = 0.0
    in_flight: float = 0.0
    stuck_engine: str | None = None
    pile: int = 0
    canary_timeouts: int = 0
    longest_gap_seconds: float = 0.0
    ever_progressed: bool = False
    tokens_served: bool = False

    def waiting_evidence(self) -> str:
        """Who waits, in words; empty when there is no sign that anybody does."""
        parts = []
        if self.in_flight > 0:
            engine = f" (engine {self.stuck_engine} is stuck)" if self.stuck_engine else ""
            parts.append(f"{self.in_flight:.0f} requests in flight{engine}")
        if self.pile >= PILE_GROWTH:
            parts.append(f"{self.pile} connections piled up")
        if self.canary_timeouts:
            parts.append(f"{self.canary_timeouts} canary requests got no token")
        return ", ".join(parts)


class _Pile:
    """Growth of a count since the last progress, within a window."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def add(self, timestamp: float, count: float) -> None:
        self._points.append((timestamp, count))
        while self._points[0][0] < timestamp - PILE_WINDOW_SECONDS:
            self._points.popleft()

    def clear(self, timestamp: float | None = None) -> None:
        """Forget all but the newest count, which is the new ground level."""
        newest = self._points[-1] if self._points else None
        self._points.clear()
        if newest is not None and timestamp is not None:
            self._points.append((timestamp, newest[1]))

    def growth(self) -> tuple[int, float]:
        """How much it grew in at least three steps, and for how many seconds; zeros when it did not."""
        points = list(self._points)
        if len(points) < 2:
            return 0, 0.0
        counts = [count for _, count in points]
        lowest = min(range(len(counts)), key=counts.__getitem__)
        steps = [at for (at, now), (_, before) in zip(points[1:], points, strict=False) if now > before]
        growth = int(counts[-1] - counts[lowest])
        if growth < PILE_GROWTH or len(steps) < PILE_STEPS:
            return 0, 0.0
        return growth, points[-1][0] - steps[0]


class Heartbeat:
    """Follows the progress of one server process, per engine.

    Not thread-safe: one owner. Memory: a few numbers per engine and a window of counts.
    """

    def __init__(self) -> None:
        self._engines: tuple[str, ...] = ()
        self._progress: Floats = np.empty(0)
        self._advanced_at: Floats = np.empty(0)
        self._busy_since: Floats = np.empty(0)
        self._in_flight: Floats = np.empty(0)
        self._page_at: float | None = None
        self._fds = _Pile()
        self._connections = _Pile()
        self._canary_waiting_since: float | None = None
        self._canary_timeouts = 0
        self._canary_ended_at = 0.0
        self._longest_gap_seconds = 0.0
        self._ever_progressed = False
        self._usual_gap_seconds = math.inf
        self._excused_until = 0.0

    def see_page(self, timestamp: float, engines: tuple[str, ...], columns: EngineColumns, fds: float | None) -> None:
        """Take in a page.

        Args:
            timestamp: When the page was asked for, unix seconds.
            engines: The ``engine`` labels of the columns.
            columns: Progress counters and load per engine.
            fds: Open file descriptors of the API server, where the page says.
        """
        progress = np.nan_to_num(columns.progress, nan=0.0)
        in_flight = np.nan_to_num(columns.in_flight, nan=0.0)
        backwards = self._page_at is not None and timestamp < self._page_at
        if fds is not None:
            self._fds.add(timestamp, fds)
        if engines != self._engines or backwards:
            self._engines = engines
            self._advanced_at = np.full(len(engines), timestamp)
            self._busy_since = np.where(in_flight > 0, timestamp, np.inf)
            self._excused_until = 0.0
            self._fds.clear(timestamp)
            self._connections.clear()
        else:
            self._excuse_blindness(timestamp)
            advanced = progress != self._progress
            if advanced.any():
                self._note_progress(timestamp, advanced)
            self._busy_since = np.where(in_flight > 0, np.minimum(self._busy_since, timestamp), np.inf)
        self._progress, self._in_flight, self._page_at = progress, in_flight, timestamp

    def _excuse_blindness(self, timestamp: float) -> None:
        """Count only time in which pages came: nobody knows what the server did between two distant ones."""
        if self._page_at is None:
            return
        gap = timestamp - self._page_at
        if gap > 0:
            self._usual_gap_seconds = min(self._usual_gap_seconds * 1.01, gap)
        blind = gap - 3.0 * max(self._usual_gap_seconds, 1.0)
        if blind > 0:
            self._excused_until = max(self._excused_until, float(self._advanced_at.max())) + blind

    def _note_progress(self, timestamp: float, advanced: np.typing.NDArray[np.bool_]) -> None:
        busy_from = np.maximum(self._advanced_at, self._busy_since)
        gaps = np.where(advanced & np.isfinite(busy_from), timestamp - busy_from, 0.0)
        if self._ever_progressed:
            self._longest_gap_seconds = max(self._longest_gap_seconds * 0.999, float(gaps.max()))
        self._advanced_at = np.where(advanced, timestamp, self._advanced_at)
        self._ever_progressed = True
        self._canary_timeouts = 0
        self._canary_waiting_since = None
        self._fds.clear(timestamp)
        self._connections.clear(timestamp)

    def see_connections(self, timestamp: float, established: int) -> None:
        """Take in the number of established connections to the port."""
        self._connections.add(timestamp, established)

    def see_canary(self, *, ok: bool, timed_out: bool, began_at: float, ended_at: float) -> None:
        """Take in one of our own requests: its token is progress, its time-out is somebody waiting in vain."""
        if ok:
            self._canary_timeouts = 0
            self._canary_waiting_since = None
        elif timed_out and self._advanced_at.size and began_at >= float(self._advanced_at.max()) - 1.0:
            self._canary_timeouts += 1
            self._canary_ended_at = ended_at
            if self._canary_waiting_since is None:
                self._canary_waiting_since = began_at

    def excuse(self) -> None:
        """The time until now does not count: the server was paused, or nobody could look at it."""
        if self._page_at is not None:
            self._excused_until = self._page_at
            self._canary_timeouts = 0
            self._canary_waiting_since = None
            self._fds.clear(self._page_at)
            self._connections.clear(self._page_at)

    def forget_gap(self) -> None:
        """The last gap was a stall and says nothing of how the healthy server behaves."""
        self._longest_gap_seconds = 0.0

    def pulse(self) -> Pulse:
        """The heartbeat as of the newest page."""
        if self._page_at is None or not self._engines:
            return Pulse()
        since = np.maximum(np.maximum(self._advanced_at, self._busy_since), self._excused_until)
        stuck_per_engine = np.maximum(self._page_at - since, 0.0)
        slowest = int(np.argmax(stuck_per_engine))
        stuck_seconds = float(stuck_per_engine[slowest])
        stuck_engine = self._engines[slowest] if len(self._engines) > 1 and stuck_seconds > 0 else None
        if self._canary_waiting_since is not None:
            stuck_seconds = max(stuck_seconds, self._canary_ended_at - self._canary_waiting_since)
        pile, piling_seconds = max(self._fds.growth(), self._connections.growth())
        return Pulse(
            progress_age_seconds=max(0.0, self._page_at - float(self._advanced_at.max())),
            stuck_seconds=stuck_seconds,
            piling_seconds=piling_seconds,
            in_flight=float(self._in_flight.sum()),
            stuck_engine=stuck_engine,
            pile=pile,
            canary_timeouts=self._canary_timeouts,
            longest_gap_seconds=self._longest_gap_seconds,
            ever_progressed=self._ever_progressed,
            tokens_served=bool(self._progress.sum() > 0),
        )
