"""An adaptive limit of requests in flight: additive increase, multiplicative decrease (AIMD).

Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in computer networks", 1989:
of the linear rules only this one comes to a fair and efficient limit. What counts as congestion here is how long a
request waits before an engine takes it, and a KV cache that is full while requests wait. Until congestion is met for
the first time the limit doubles every second, as in the slow start of Jacobson, "Congestion avoidance and control",
1988.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AimdLimit", "AimdSettings"]

NOBODY_SERVED_SECONDS = 1.0
"""What each who waits counts for while nobody is served."""


@dataclass(frozen=True)
class AimdSettings:
    """How the limit moves.

    Args:
        queue_target_seconds: Waiting longer than this is congestion.
        full_kv_ratio: So is a KV cache that is fuller than this while requests wait.
        decrease: What the limit is multiplied with under congestion.
        decrease_every_seconds: No oftener than this, so that the last decrease can show its effect.
        increase_ratio: What is added per second without congestion, as a share of the limit (at least one request),
            while the limit holds requests back.
        least: The limit never falls below it.
        most: Nor does it rise above it.
    """

    queue_target_seconds: float = 1.0
    full_kv_ratio: float = 0.95
    decrease: float = 0.7
    decrease_every_seconds: float = 2.0
    increase_ratio: float = 0.05
    least: int = 2
    most: int = 10_000


class AimdLimit:
    """Not thread-safe: for one event loop.

    Args:
        settings: How it moves.
        start: The limit at first.
    """

    def __init__(self, settings: AimdSettings, start: int) -> None:
        self._settings = settings
        self._limit = float(min(max(start, settings.least), settings.most))
        self._looked_at: float | None = None
        self._decreased_at = float("-inf")
        self._starts_slowly = True

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""
        return int(self._limit)

    def look(
        self,
        now: float,
        *,
        in_flight: int,
        waiting: float,
        served_per_second: float,
        kv_ratio: float,
        refused: int = 0,
    ) -> int:
        """Move the limit by what is seen, and return it.

        Args:
            now: Seconds of a clock that never jumps.
            in_flight: Requests in flight.
            waiting: Of them, those that no engine has taken yet.
            served_per_second: Requests that end, per second, lately.
            kv_ratio: How full the KV cache is, 0 to 1.
            refused: Requests that the limit has refused since the look before.
        """
        settings = self._settings
        seconds = 0.0 if self._looked_at is None else max(0.0, now - self._looked_at)
        self._looked_at = now
        # Little's law: who comes now waits for those before.
        queue_seconds = waiting / served_per_second if served_per_second > 0 else waiting * NOBODY_SERVED_SECONDS
        congested = queue_seconds > settings.queue_target_seconds or (kv_ratio > settings.full_kv_ratio and waiting > 0)
        if congested:
            self._starts_slowly = False
            if now - self._decreased_at >= settings.decrease_every_seconds:
                self._decreased_at = now
                # From what is really in flight: a limit far above it says nothing.
                self._limit = settings.decrease * min(self._limit, float(max(in_flight, 1)))
        elif refused > 0 or in_flight >= 0.8 * self._limit:
            ratio = 1.0 if self._starts_slowly else settings.increase_ratio
            self._limit += seconds * max(1.0, ratio * self._limit)
        self._limit = min(max(self._limit, float(settings.least)), float(settings.most))
        return self.limit
