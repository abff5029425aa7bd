"""The one door for time and randomness.

Nothing else in this package reads a clock or makes a random generator, so that any incident can be
replayed in a test: pass a :class:`ManualClock` and a seed, and the same samples give the same verdicts.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Clock", "ManualClock", "SystemClock", "make_random", "nanosecond_source"]


@runtime_checkable
class Clock(Protocol):
    """A source of time. Every method may be called from any thread."""

    def now(self) -> float:
        """Unix time in seconds. It may step in either direction when the host's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes backwards. For durations."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` of this clock have passed."""
        ...


class SystemClock:
    """The clock of the host."""

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running event loop."""
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """A clock that moves only when told; for replay, simulation and tests. Thread-safe.

    Args:
        start: Unix time in seconds at which it begins.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._now = start
        self._monotonic = 0.0

    def now(self) -> float:
        """Unix time in seconds, as last set."""
        return self._now

    def monotonic(self) -> float:
        """Seconds advanced since construction; steps of the wall clock do not show here."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, on both clocks.

        Raises:
            ValueError: When ``seconds`` is negative; use :meth:`step_wall` for a clock that is set back.
        """
        if seconds < 0:
            msg = "time does not pass backwards; use step_wall() to set the wall clock"
            raise ValueError(msg)
        with self._lock:
            self._now += seconds
            self._monotonic += seconds

    def set_now(self, now: float) -> None:
        """Move both clocks forward to the wall time ``now``; earlier times are ignored."""
        with self._lock:
            if now > self._now:
                self._monotonic += now - self._now
                self._now = now

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock by ``seconds`` (either sign) without time passing, as NTP or a person would."""
        with self._lock:
            self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Advance at once and yield to the loop: simulated time needs no waiting."""
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)


def nanosecond_source(clock: Clock) -> Callable[[], int]:
    """Unix time in nanoseconds of a clock, for those who ask a million times a second.

    Of the host's clock it is the system's own function, without a call of ours around it. Of any other the time is
    rounded to the millisecond, so that what is made of it equals ``round(clock.now() * 1000)``.
    """
    return time.time_ns if type(clock) is SystemClock else lambda: round(clock.now() * 1000) * 1_000_000


def make_random(seed: int | None) -> random.Random:
    """A random generator of its own.

    Args:
        seed: The same seed gives the same sequence on every machine; ``None`` asks the operating system.
    """
    return random.Random(seed)  # noqa: S311  # simulation and jitter, never secrets
