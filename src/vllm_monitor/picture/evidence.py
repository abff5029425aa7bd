"""What the newest observations of one target say, reduced to the facts that a judgement needs.

Facts only: no thresholds for what counts as ill live here (those are in :mod:`vllm_monitor.picture.judge`).
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from vllm_monitor.picture.log_signatures import LogSignature, classify_line
from vllm_monitor.records import (
    CanaryObservation,
    HealthObservation,
    LogObservation,
    PageObservation,
    PauseObservation,
    ProbeFailure,
    ProcessInfo,
    ProcessObservation,
)

__all__ = ["ApiEvidence", "LogEvidence", "ProcessEvidence", "ServerLife", "process_role"]

CONFIRM_SECONDS = 5.0
"""A page shows the past: progress on it refutes a death only when it was asked for this long after."""
_ANSWERING_FAILURES = frozenset({"http", "not_metrics", "too_large", "truncated"})


class ApiEvidence:
    """How the API server answers: pages, health, our canary, pause state."""

    def __init__(self) -> None:
        self.page: PageObservation | None = None
        self.health: HealthObservation | None = None
        self.canary: CanaryObservation | None = None
        self.is_paused: bool | None = None
        self.answered_once = False
        self.last_answer_at: float | None = None
        self.last_503_at: float | None = None
        self.failures_in_a_row = 0
        self.timeouts_in_a_row = 0
        self.silent_since: float | None = None
        self._latencies_count_from = 0.0
        self.latencies_seconds: deque[float] = deque(maxlen=10)
        self.canary_latencies_seconds: deque[float] = deque(maxlen=3)

    def see_page(self, page: PageObservation) -> None:
        """Take in a scrape."""
        self.page = page
        self._see_answer(page.timestamp, page.visible_at, page.failure, page.latency_seconds)

    def see_health(self, health: HealthObservation) -> None:
        """Take in an answer of ``/health`` (or its absence)."""
        self.health = health
        if health.status == 503:
            self.last_503_at = health.visible_at
        self._see_answer(health.timestamp, health.visible_at, health.failure, health.latency_seconds)

    def see_canary(self, canary: CanaryObservation) -> None:
        """Take in a canary request."""
        self.canary = canary
        if canary.timestamp >= self._latencies_count_from:
            self.canary_latencies_seconds.append(canary.latency_seconds)

    def see_pause(self, pause: PauseObservation) -> None:
        """Take in what ``/is_paused`` said."""
        self.is_paused = pause.is_paused

    def _see_answer(self, began: float, there: float, failure: ProbeFailure | None, latency_seconds: float) -> None:
        if began >= self._latencies_count_from:
            self.latencies_seconds.append(latency_seconds)
        if failure is None or failure.kind in _ANSWERING_FAILURES:
            self.answered_once = True
            self.last_answer_at = there
            self.failures_in_a_row = self.timeouts_in_a_row = 0
            self.silent_since = None
            return
        self.failures_in_a_row += 1
        self.timeouts_in_a_row = self.timeouts_in_a_row + 1 if failure.kind == "timeout" else 0
        if self.silent_since is None:
            self.silent_since = began

    @property
    def usual_latency_seconds(self) -> float:
        """Median time that the last few answers took; 0 when there are too few."""
        return statistics.median(self.latencies_seconds) if len(self.latencies_seconds) >= 8 else 0.0

    @property
    def refused(self) -> bool:
        """The newest probes found nobody listening."""
        failures = [probe.failure for probe in (self.page, self.health) if probe is not None]
        return bool(failures) and all(failure is not None and failure.kind == "refused" for failure in failures)

    @property
    def page_failure(self) -> ProbeFailure | None:
        """Why the newest scrape has no values, or ``None``."""
        return self.page.failure if self.page is not None else None

    def forget_latencies(self, until: float) -> None:
        """What was asked before ``until``, while nobody could answer, says nothing of how fast the server is."""
        self._latencies_count_from = until
        self.latencies_seconds.clear()
        self.canary_latencies_seconds.clear()

    def forget_failures(self) -> None:
        """A new server process has come: what the old one did is no evidence any more."""
        self.answered_once = False
        self.last_503_at = None
        self.is_paused = None


def process_role(process: ProcessInfo) -> str:
    """The role of a process, seeing through titles that the kernel cuts to 15 characters while it dies."""
    if process.role.startswith("other:VLLM::EngineCor"):
        return "engine"
    if process.role.startswith("other:VLLM::Worker"):
        return "worker"
    return process.role


def _is_gone(process: ProcessInfo) -> bool:
    return process.rss_bytes == 0 or process.state in ("zombie", "dead")


@dataclass(slots=True)
class ServerLife:
    """One life of the server, from the appearance of its API process to its end.

    Attributes:
        api_pid: Process id of the API server.
        began_at: Unix seconds at which we first saw it.
        seen: Roles whose processes were seen alive, with their process ids.
        missing: Role to unix seconds since when a process of it is gone.
        was_ready: Whether its port ever answered.
        port_closed_at: Unix seconds at which its port, once open, was found closed while every process ran.
        ended_at: Unix seconds at which the API process was found gone.
    """

    api_pid: int
    began_at: float
    seen: dict[str, set[int]]
    missing: dict[str, float]
    was_ready: bool = False
    port_closed_at: float | None = None
    ended_at: float | None = None


class ProcessEvidence:
    """The process tree over the last few looks."""

    LOOKS = 4

    def __init__(self) -> None:
        self.newest: ProcessObservation | None = None
        self.life: ServerLife | None = None
        self._history: deque[ProcessObservation] = deque(maxlen=self.LOOKS)

    def see(self, observation: ProcessObservation) -> bool:
        """Take in one look at the process tree.

        Returns:
            Whether a new server process has appeared.
        """
        self.newest = observation
        self._history.append(observation)
        alive = [process for process in observation.processes if not _is_gone(process)]
        api = next((process for process in alive if process_role(process) == "api"), None)
        new_life = api is not None and (
            self.life is None
            or (api.pid != self.life.api_pid and self.life.api_pid not in {process.pid for process in alive})
        )
        if new_life and api is not None:
            self.life = ServerLife(api.pid, observation.timestamp, {}, {})
        if self.life is None:
            return new_life
        here: dict[str, set[int]] = {}
        for process in alive:
            here.setdefault(process_role(process), set()).add(process.pid)
        for role in ("engine", "worker"):
            known = self.life.seen.setdefault(role, set())
            present = here.get(role, set())
            # A helper that has not named itself yet is no engine; once named, its pid counts as one.
            known |= present
            if known - present:
                self.life.missing.setdefault(role, observation.timestamp)
            elif known:
                self.life.missing.pop(role, None)
        if self.life.api_pid in here.get("api", set()):
            self.life.ended_at = None
            if observation.listen_queue is not None:
                self.life.port_closed_at = None
            elif self.life.was_ready and not self.life.missing and self.life.port_closed_at is None:
                self.life.port_closed_at = observation.timestamp
        elif self.life.ended_at is None:
            self.life.ended_at = observation.timestamp
        return new_life

    def confirm_progress(self, at: float) -> None:
        """Tokens flow, so a process that went well before is not missed (a worker may have been replaced).

        Args:
            at: Unix seconds of the page that shows progress.
        """
        if self.life is not None and any(since < at - CONFIRM_SECONDS for since in self.life.missing.values()):
            self.life.missing.clear()
            self.life.seen.clear()

    def living_roles(self) -> frozenset[str]:
        """Roles of the processes that the newest look found alive."""
        processes = self.newest.processes if self.newest is not None else ()
        return frozenset(process_role(process) for process in processes if not _is_gone(process))

    def looks_without(self, role: str) -> int:
        """How many of the newest looks in a row lacked a process of ``role`` that once was there."""
        if self.life is None:
            return 0
        known = {self.life.api_pid} if role == "api" else self.life.seen.get(role, set())
        count = 0
        for observation in reversed(self._history):
            present = {process.pid for process in observation.processes if not _is_gone(process)}
            if not known or known <= present:
                break
            count += 1
        return count

    def stopped(self, role: str) -> ProcessInfo | None:
        """A process of ``role`` that the newest two looks found stopped (state T), or ``None``."""
        looks = list(self._history)[-2:]
        if len(looks) < 2:
            return None
        first = {process.pid for process in looks[0].processes if process.state in ("stopped", "tracing-stop")}
        for process in looks[1].processes:
            stopped = process.state in ("stopped", "tracing-stop") and process.pid in first
            if stopped and process_role(process) == role:
                return process
        return None

    def cpu_ratio(self, *roles: str) -> float | None:
        """CPU cores used by the processes of ``roles`` over the kept looks; ``None`` before the second look."""
        if len(self._history) < 2:
            return None
        first, last = self._history[0], self._history[-1]
        seconds = last.timestamp - first.timestamp
        if seconds <= 0:
            return None
        before = {process.pid: process.cpu_seconds for process in first.processes}
        used = sum(
            max(0.0, process.cpu_seconds - before[process.pid])
            for process in last.processes
            if process_role(process) in roles and process.pid in before
        )
        return used / seconds

    def wants_cpu(self, *roles: str) -> bool:
        """Whether a process of ``roles`` was runnable in any of the newest three looks."""
        return any(
            process.state in ("running", "disk-sleep", "waking")
            for look in list(self._history)[-3:]
            for process in look.processes
            if process_role(process) in roles and not _is_gone(process)
        )


class LogEvidence:
    """Lines of the log that tell of life and death."""

    def __init__(self) -> None:
        self.seen_at: dict[LogSignature, float] = {}
        self.first_fatal: str = ""

    def see(self, observation: LogObservation) -> LogSignature | None:
        """Take in one line.

        Returns:
            Its signature when it has one that is new in this life of the server.
        """
        signature = classify_line(observation.line)
        if signature is None or signature in self.seen_at:
            return None
        if signature in _FATAL and not self.first_fatal and LogSignature.SHUTDOWN not in self.seen_at:
            self.first_fatal = observation.line.strip()[:300]
        self.seen_at[signature] = observation.visible_at
        return signature

    def confirm_progress(self, at: float) -> None:
        """Tokens flow, so a line that told of a death well before was none (a client's words may hold such text).

        Args:
            at: Unix seconds of the page that shows progress.
        """
        death = self.first_death
        if death is not None and self.seen_at[death] < at - CONFIRM_SECONDS:
            self.clear()

    def clear(self) -> None:
        """A new server process writes a new story."""
        self.seen_at.clear()
        self.first_fatal = ""

    @property
    def starting(self) -> bool:
        """The newest life of the server has begun to write, and has not said that it is ready."""
        return LogSignature.STARTING in self.seen_at and LogSignature.READY not in self.seen_at

    @property
    def first_death(self) -> LogSignature | None:
        """The kind of the first line that tells of a death, or ``None``."""
        deaths = [s for s in _FATAL if s in self.seen_at and s is not LogSignature.STEP_TIMED_OUT]
        return min(deaths, key=self.seen_at.__getitem__, default=None)

    @property
    def shutting_down(self) -> bool:
        """A shutdown was asked for, before anything died."""
        asked = self.seen_at.get(LogSignature.SHUTDOWN)
        return asked is not None and all(asked <= self.seen_at.get(fatal, asked) for fatal in _FATAL)


_FATAL = (
    LogSignature.WORKER_DIED,
    LogSignature.ENGINE_DIED,
    LogSignature.STARTUP_FAILED,
    LogSignature.STEP_TIMED_OUT,
)
