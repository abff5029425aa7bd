"""A plugin that is loaded: its process, what it has cost, and how often it has failed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from vllm_monitor.clock import Clock
from vllm_monitor.plugin_system.catalogue import Candidate
from vllm_monitor.plugin_system.process import Failure, PluginFailedError, PluginProcess

__all__ = ["MOST_FAILURES", "RunningPlugin"]

MOST_FAILURES = 3
"""Failures in a row, or deaths of its process within a day, after which a plugin is disabled."""
_DAY_SECONDS = 86_400.0
_LONGEST_PAUSE_SECONDS = 60.0
_RETIRE_SECONDS = 1.0


class RunningPlugin:
    """One plugin in its process, which is started when it is first needed and again after it has died.

    Thread-safe; calls wait for each other.

    Args:
        candidate: What runs.
        interval_seconds: Time between two of its turns.
        clock: Where time comes from.
    """

    def __init__(self, candidate: Candidate, interval_seconds: float, *, clock: Clock) -> None:
        self.candidate = candidate
        self.calls = self.failures = self.timeouts = 0
        self.call_seconds = 0.0
        self.last_error = ""
        self.is_busy = False
        """Whether its turn is under way; who sets it sees to it that there is one at a time."""
        self.has_begun = False
        """Whether what is asked once (``guardrails``, ``describe``) was answered."""
        self._interval_seconds = candidate.declaration.interval_seconds or interval_seconds
        self._clock = clock
        self._due_at = clock.monotonic()
        self._lock = threading.Lock()
        self._process: PluginProcess | None = None
        self._retired = threading.Event()
        self._failures_in_a_row = 0
        self._deaths: deque[float] = deque(maxlen=MOST_FAILURES)

    @property
    def pid(self) -> int | None:
        """Its process, while it has one."""
        process = self._process
        return process.pid if process is not None else None

    def is_due(self) -> bool:
        """Whether its next turn has come."""
        return not self.is_busy and not self._retired.is_set() and self._clock.monotonic() >= self._due_at

    def load(self) -> None:
        """Start its process, unless it runs.

        Raises:
            PluginFailedError: When it cannot be loaded.
        """
        with self._lock:
            self._started()

    def call(self, verb: str, context: Mapping[str, Any], timeout_seconds: float | None = None) -> Any:
        """What one of its functions answers.

        Args:
            verb: The function.
            context: What it is given.
            timeout_seconds: Instead of its own time limit.

        Raises:
            PluginFailedError: When it fails; it is counted by :meth:`note_failure`.
        """
        with self._lock:
            process = self._started()
            began = self._clock.monotonic()
            try:
                return process.call(verb, context, timeout_seconds or self.candidate.declaration.timeout_seconds)
            except PluginFailedError as error:
                if error.failure not in (Failure.RAISED, Failure.NOT_ASKED):
                    self._process = None
                raise
            except BaseException:  # an interrupt: its answer would be taken for that of the next call
                self._process = None
                process.close()
                raise
            finally:
                self.calls += 1
                self.call_seconds += self._clock.monotonic() - began

    def note_success(self) -> None:
        """A turn went well: the next comes after the interval."""
        self._failures_in_a_row = 0
        now = self._clock.monotonic()
        self._due_at = max(self._due_at + self._interval_seconds, now)  # on a grid, without running after lost turns

    def note_failure(self, error: str, failure: Failure) -> bool:
        """A turn failed: the next comes later and later.

        Returns:
            Whether it has failed too often to go on.
        """
        now = self._clock.monotonic()
        self.failures += 1
        self.timeouts += failure is Failure.TIMED_OUT
        self.last_error = error
        self._failures_in_a_row += 1
        if failure in (Failure.TIMED_OUT, Failure.DIED, Failure.MEMORY):
            self._deaths.append(now)
        self._due_at = now + min(
            _LONGEST_PAUSE_SECONDS, max(self._interval_seconds, 2.0 ** (self._failures_in_a_row - 1))
        )
        is_dying = len(self._deaths) == MOST_FAILURES and now - self._deaths[0] < _DAY_SECONDS
        return is_dying or self._failures_in_a_row >= MOST_FAILURES

    @property
    def is_first_failure(self) -> bool:
        """Whether the turn before its newest failure went well."""
        return self._failures_in_a_row == 1

    def postpone(self) -> None:
        """A turn could not be had, through no fault of its own."""
        self._due_at = self._clock.monotonic() + max(self._interval_seconds, 1.0)

    def retire(self) -> None:
        """End its process, also in the middle of a call; it has no further turns."""
        self.kill()
        if self._lock.acquire(timeout=_RETIRE_SECONDS):  # a call under way fails at once, and a start sees the flag
            try:
                if self._process is not None:
                    self._process.close()
            finally:
                self._lock.release()

    def kill(self) -> None:
        """As :meth:`retire`, without waiting for anything."""
        self._retired.set()
        process = self._process
        if process is not None:
            process.kill()

    def _started(self) -> PluginProcess:
        if self._retired.is_set():
            raise PluginFailedError("it was switched off", Failure.DIED)
        if self._process is None:
            fresh = self._process = PluginProcess(self.candidate.program)
            try:
                if self._retired.is_set():  # meanwhile; whoever did it saw no process to end
                    raise PluginFailedError("it was switched off", Failure.DIED)
                fresh.load()
            except BaseException:
                self._process = None
                fresh.close()
                raise
        return self._process
