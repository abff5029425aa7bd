"""Counts who uses a database connection, so that a fork can wait until nobody does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_monitor.clock import SystemClock

__all__ = ["GATE", "ConnectionGate"]


class ConnectionGate:
    """Everybody who uses a connection enters and leaves; while the gate is shut, nobody enters. Thread-safe.

    A thread that is inside may enter again although the gate is shut: it would never leave otherwise.
    """

    def __init__(self) -> None:
        self.forget_all()

    def forget_all(self) -> None:
        """Begin anew, in a forked child: the threads that were inside are not here."""
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._is_shut = False

    def enter(self) -> int:
        """Go inside, as soon as the gate is open; the answer is for :meth:`leave`."""
        me = threading.get_ident()
        with self._changed:
            while self._is_shut and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1
        return me

    def leave(self, who: int) -> None:
        """Go out again."""
        with self._changed:
            times = self._inside.pop(who, 0) - 1  # none when it went in before the fork that made this process
            if times > 0:
                self._inside[who] = times
            self._changed.notify_all()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside for as long as the block takes."""
        who = self.enter()
        try:
            yield
        finally:
            self.leave(who)

    def is_inside(self) -> bool:
        """Whether the calling thread is inside."""
        return threading.get_ident() in self._inside

    def shut(self, deadline: float) -> bool:
        """Let nobody in, and wait for those inside; ``False`` when some are there still.

        Args:
            deadline: On the host's monotonic clock, in seconds.
        """
        clock = SystemClock()
        with self._changed:
            self._is_shut = True
            return self._changed.wait_for(lambda: not self._inside, max(0.0, deadline - clock.monotonic()))

    def open(self) -> None:
        """Let everybody in again."""
        with self._changed:
            self._is_shut = False
            self._changed.notify_all()


GATE = ConnectionGate()
"""Of this process: SQLite's knowledge of the files that are open is the process's, too."""
