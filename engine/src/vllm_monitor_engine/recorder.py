"""Takes steps from the event loop, and tells the monitor about them from a thread of its own.

The loop only ever appends to a bounded buffer. The thread counts, in slices so short that the loop never waits long for
the interpreter, and writes what it counted into the spool. Whatever goes wrong in it is counted and told, never raised.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_monitor_engine.engine_totals import EngineTotals
from vllm_monitor_engine.heartbeat import Heartbeat
from vllm_monitor_engine.rejections import Rejections
from vllm_monitor_engine.request_lines import request_lines
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool
from vllm_monitor_engine.startup_phases import StartupPhases
from vllm_monitor_engine.step_buffer import StepBuffer

__all__ = ["InFlight", "Recorder"]

InFlight = tuple[float, float | None] | None
"""Requests in flight and the age of the oldest in seconds, each as far as it is known."""

_log = logging.getLogger("vllm.vllm_monitor_engine")

SLICE_STEPS = 256
"""Steps counted before other threads get their turn: half a millisecond, and usually all there are."""
LOOK_SECONDS = 0.5
"""How often it is asked whether an engine stalls, which costs little."""
CLOSE_SECONDS = 0.1
TOTALS_SECONDS = 1.0
"""Without anything new a line is written this often: the sign of life."""
PENDING_ENTRIES = 10_000
"""Requests, and lines of other kinds, that wait in memory while the disk takes none; the oldest go first."""
TIMED_KEPT = 500


class Recorder:
    """The recorder of one process. :meth:`record` and :meth:`note` are for the loop; the rest works by itself.

    Args:
        settings: How it works.
        spool: Where it writes.
        bounds: Gives the bounds of the server's own histograms, asked once, in the thread.
        in_flight: Gives the requests that this process has given to an engine and not got back whole, and the age of
            the oldest in seconds; ``None`` where that cannot be known.
        wall: Unix seconds.
        monotonic: Seconds of a clock that never jumps.
        rejections: Requests that were refused.
        startup: When the server reached which phase of its start.
        other_faults: Gives the faults of ours that somebody else has counted.
        shares_engines: Whether other API servers, in processes of their own, use the same engines. Then this one sees
            a part of the steps, and cannot tell alone that an engine stalls: what it waits for is told, and judged by
            whoever sees all of them.

    Attributes:
        standing: What holds at the moment, told with all totals: ``paused``, 0 or 1, where it is known.
    """

    def __init__(
        self,
        settings: EngineSettings,
        spool: Spool,
        *,
        bounds: Callable[[], Mapping[str, Sequence[float]]] = dict,
        in_flight: Callable[[], InFlight] = lambda: None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rejections: Rejections | None = None,
        startup: StartupPhases | None = None,
        other_faults: Callable[[], int] = int,
        shares_engines: bool = False,
    ) -> None:
        self.rejections = rejections if rejections is not None else Rejections()
        self.startup = startup if startup is not None else StartupPhases(wall=wall)
        self.standing: dict[str, float] = {}
        self._settings = settings
        self._spool = spool
        self._bounds = bounds
        self._in_flight = in_flight
        self._other_faults = other_faults
        self._shares_engines = shares_engines
        self._wall = wall
        self._monotonic = monotonic
        self._buffer = StepBuffer(settings.buffer_steps)
        self._notes: list[dict[str, Any]] = []
        self._engines: dict[int, EngineTotals] = {}
        self._known_bounds: Mapping[str, Sequence[float]] | None = None
        self._heartbeats: dict[int | None, Heartbeat] = {}
        self._largest_gap_seconds = 0.0
        self._uncounted_steps = 0
        self._in_flight_now = 0.0
        self._oldest_seconds: float | None = None
        self._pending: deque[dict[str, Any]] = deque()
        self._pending_entries = 0
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._last_totals_at = -1e9
        self.timed: deque[float] = deque(maxlen=TIMED_KEPT)
        """Seconds that some of the calls on the event loop took, as whoever makes them measured it."""
        self._complained = False
        self.lost_lines = 0
        self.faults = 0

    # -- on the event loop -----------------------------------------------------------------------------------------

    def record(self, engine: int, scheduler: object, iteration: object) -> None:
        """Take one step: what its scheduler says, and what came out of it. O(1), no I/O, no lock."""
        buffer = self._buffer
        if len(buffer) < buffer.capacity:
            buffer.append((self._monotonic(), engine, scheduler, iteration))
        else:
            buffer.lost += 1

    def note(self, kind: str, **facts: Any) -> None:
        """Tell a rare fact, as that an engine sleeps."""
        if len(self._notes) < PENDING_ENTRIES:
            self._notes.append({"kind": kind, "t": self._wall(), **facts})
        else:
            self.lost_lines += 1

    def load(self) -> tuple[float, float]:
        """Requests waiting, and how full the fullest KV cache is, as the engines last said."""
        now = self._monotonic()
        gauges = [engine.fresh_gauges(now) for engine in list(self._engines.values())]
        waiting = sum(one.get("num_requests_waiting", 0.0) + one.get("num_requests_deferred", 0.0) for one in gauges)
        return waiting, max((one.get("kv_cache_usage_perc", 0.0) for one in gauges), default=0.0)

    # -- in the thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to count and write."""
        self._thread = threading.Thread(target=self._run, name="vllm-monitor-engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 2.0) -> None:
        """Write what is left, and end; waits no longer than it is told."""
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        turned_at = self._monotonic()
        while not self._ended:
            self._wake.wait(min(LOOK_SECONDS, self._settings.flush_seconds))
            if self._monotonic() - turned_at >= self._settings.flush_seconds - CLOSE_SECONDS or self.look():
                turned_at = self._monotonic()
                self.turn()
        self.note("end")
        self.turn(last=True)
        self._spool.close()

    def look(self) -> bool:
        """Whether something has to be told at once: that an engine stalls, or that it does so no longer."""
        self._guarded(self._watch)
        return bool(self._notes)

    def turn(self, *, last: bool = False) -> None:
        """Count what has come and write it; a fault of ours is counted, and the next turn goes on."""
        self._guarded(self._count)
        self._guarded(self._watch)
        self._guarded(lambda: self._tell(last))
        self._guarded(self._write)

    def _guarded(self, do: Callable[[], None]) -> None:
        """Whatever fails in it, the server goes on, and so do we."""
        try:
            do()
        except Exception:
            self.faults += 1
            if self.faults == 1:
                with contextlib.suppress(Exception):
                    _log.warning("vllm-monitor: a fault of its own; counted from now on", exc_info=True)

    def _count(self) -> None:
        while steps := self._buffer.take(SLICE_STEPS):
            for index in {step[1] for step in steps}:
                of_engine = [step for step in steps if step[1] == index]
                try:
                    finished = self._engine(index).add(of_engine)
                except Exception:  # a shape that nobody thought of costs these steps
                    self.faults += 1
                    self._uncounted_steps += len(of_engine)
                    continue
                for line in request_lines(finished, index, self._wall()):
                    self._keep(line)
            if len(steps) < SLICE_STEPS:
                break
            time.sleep(0)  # others want the interpreter, too

    def _engine(self, index: int) -> EngineTotals:
        totals = self._engines.get(index)
        if totals is None:
            if self._known_bounds is None:
                try:
                    self._known_bounds = self._bounds()
                except Exception:
                    self._known_bounds = {}
            totals = self._engines[index] = EngineTotals(self._known_bounds, is_part=self._shares_engines)
        return totals

    def _tell(self, last: bool) -> None:
        now = self._monotonic()
        while self._notes:
            self._keep(self._notes.pop(0))
        if last or self._pending or now - self._last_totals_at >= TOTALS_SECONDS - CLOSE_SECONDS:
            self._last_totals_at = now
            self._keep(self._totals(now))

    def _write(self) -> None:
        if not self._pending:
            return
        for _ in range(self._spool.write(self._pending)):
            self._pending_entries -= _entries(self._pending.popleft())
        self._complain()

    def _complain(self) -> None:
        """Say once in the server's log that, and why, nothing can be written; and again after it could be."""
        failure = self._spool.failure
        if failure is not None and not self._complained:
            _log.warning("vllm-monitor: what it sees cannot be written and waits in memory: %s", failure)
        self._complained = failure is not None

    def _watch(self) -> None:
        """Look at each engine, as it says itself what it has in flight, and at all, as this process knows it."""
        now = self._monotonic()
        self._in_flight_now, self._oldest_seconds = self._flying()
        is_paused = bool(self.standing.get("paused"))
        changes: list[dict[str, Any]] = []
        gaps = [0.0]
        for index, engine in self._engines.items():
            if is_paused:
                engine.excuse()
            gaps.append(engine.take_largest_gap())
            changes += self._heartbeat(index).look(
                now,
                step_at=engine.last_at,
                in_flight=engine.in_flight,
                largest_gap_seconds=gaps[-1],
                is_excused=is_paused,
            )
        self._largest_gap_seconds = max(self._largest_gap_seconds, *gaps)
        changes += self._heartbeat(None).look(
            now,
            step_at=self._buffer.newest_at,
            in_flight=self._in_flight_now,
            oldest_seconds=self._oldest_seconds,
            largest_gap_seconds=max(gaps),
            is_excused=is_paused,
        )
        if self._shares_engines:
            return
        for change in changes:
            self.note(**change)

    def _heartbeat(self, engine: int | None) -> Heartbeat:
        return self._heartbeats.setdefault(engine, Heartbeat(self._settings.stall_seconds, engine))

    def _flying(self) -> tuple[float, float | None]:
        """Requests in flight, and the age of the oldest where it is known."""
        try:
            seen = self._in_flight()
        except Exception:
            seen = None
        if seen is not None:
            return seen
        return sum(engine.in_flight for engine in self._engines.values()), None

    def _keep(self, line: dict[str, Any]) -> None:
        self._pending.append(line)
        self._pending_entries += _entries(line)
        while self._pending_entries > PENDING_ENTRIES:
            lost = _entries(self._pending.popleft())
            self._pending_entries -= lost
            self.lost_lines += lost

    def _totals(self, now: float) -> dict[str, Any]:
        step_at = self._buffer.newest_at
        gap, self._largest_gap_seconds = self._largest_gap_seconds, 0.0
        return {
            "kind": "totals",
            "t": self._wall(),
            "engines": {str(index): engine.as_json() for index, engine in sorted(self._engines.items())},
            "rejected": self.rejections.as_json(),
            **self.standing,
            "in_flight": self._in_flight_now,
            "oldest_request_seconds": None if self._oldest_seconds is None else round(self._oldest_seconds, 3),
            "step_age_seconds": None if step_at is None else round(now - step_at, 3),
            "stalled_seconds": round(
                max((one.stalled_seconds(now) for one in self._heartbeats.values()), default=0.0), 3
            ),
            "largest_step_gap_seconds": round(gap, 6),
            "lost_steps": self._buffer.lost + self._uncounted_steps,
            "lost_lines": self.lost_lines,
            "faults": self.faults + self._other_faults() + sum(one.faults for one in self._engines.values()),
            "cpu_seconds": round(self.cpu_seconds(), 6),
            "record_seconds": self.record_seconds(),
        }

    # -- what it costs ---------------------------------------------------------------------------------------------

    def record_seconds(self) -> float | None:
        """Median time of a recent call from the loop, measured on a share of them."""
        timed = list(self.timed)
        return statistics.median(timed) if timed else None

    def cpu_seconds(self) -> float:
        """CPU that all of this has used: the thread, as its own clock says, and the calls from the loop."""
        return time.thread_time() + (self._buffer.taken + self._buffer.lost) * (self.record_seconds() or 0.0)


def _entries(line: Mapping[str, Any]) -> int:
    """How much a line counts for: the requests in it, or itself."""
    return len(line["id"]) if line["kind"] == "requests" else 1
