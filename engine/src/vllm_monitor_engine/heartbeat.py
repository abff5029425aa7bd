"""Tells within seconds that an engine has stopped: requests are in flight, and no step comes."""

from __future__ import annotations

from typing import Any

__all__ = ["Heartbeat"]

FIRST_STEP_SECONDS = 60.0
"""The first request warms the engine up, which is no stall: it took up to 31 s on a CPU."""
GAP_FACTOR = 3.0
"""A stall is longer than so many times the longest usual gap between two steps (long prompts make long steps)."""
GAP_FORGOTTEN = 0.999
"""What a usual gap counts for, one look later."""


class Heartbeat:
    """Follows the steps and the requests in flight of one engine, or of all together. Not thread-safe.

    Args:
        stall_seconds: How long no step may come while requests are in flight, at the least.
        engine: Index of the engine; ``None`` for all together.
    """

    def __init__(self, stall_seconds: float, engine: int | None = None) -> None:
        self._least_seconds = stall_seconds
        self._engine = engine
        self._usual_gap_seconds = 0.0
        self._stepped = False
        self._waiting_since: float | None = None
        self._excused_until = float("-inf")
        self._idle_at = float("-inf")
        self._told = False
        self._told_at: float | None = None

    def look(
        self,
        now: float,
        *,
        step_at: float | None,
        in_flight: float,
        oldest_seconds: float | None = None,
        largest_gap_seconds: float = 0.0,
        is_excused: bool = False,
    ) -> list[dict[str, Any]]:
        """What has changed, as facts to note: the engine stalls, or it does so no longer.

        Args:
            now: Seconds of the monotonic clock.
            step_at: When the last step came, by the same clock; ``None`` when none ever did.
            in_flight: Requests given to it and not got back whole.
            oldest_seconds: Age of the oldest of them, where it is known.
            largest_gap_seconds: Largest gap between two steps, with requests in flight, since the look before.
            is_excused: Whether it is paused: then it takes no steps, and waiting begins when it is so no longer.
        """
        self._stepped = self._stepped or step_at is not None
        if is_excused:
            self._excused_until = now
        if in_flight <= 0 or is_excused:
            self._waiting_since, self._idle_at = None, now
        else:
            # Without ages it is only known that they are in flight now; waiting begins when that is first seen. Ages
            # are told by a clock that may be set: they make it no later, and no earlier than when nobody waited.
            begun = now if self._waiting_since is None else self._waiting_since
            if oldest_seconds is not None:
                begun = max(min(begun, now - oldest_seconds), self._idle_at)
            self._waiting_since = max(begun, self._excused_until, begun if step_at is None else step_at)
        stalled = self.stalled_seconds(now) > 0
        if not (stalled or self._told):  # the gap that a stall leaves is not a usual one
            self._usual_gap_seconds = max(largest_gap_seconds, GAP_FORGOTTEN * self._usual_gap_seconds)
        if stalled == self._told:
            return []
        self._told = stalled
        fact = {"kind": "stalled" if stalled else "stall_over", "engine": self._engine, "in_flight": in_flight}
        if not stalled:
            fact["stepped"] = step_at is not None and self._told_at is not None and step_at > self._told_at
        self._told_at = now
        if stalled:
            fact["seconds"] = round(self.stalled_seconds(now), 3)
        return [fact]

    @property
    def allowed_seconds(self) -> float:
        """How long no step may come now."""
        usual = max(self._least_seconds, GAP_FACTOR * self._usual_gap_seconds)
        return usual if self._stepped else max(usual, FIRST_STEP_SECONDS)

    def stalled_seconds(self, now: float) -> float:
        """How long it has been stalled; 0 while it is not."""
        waited = 0.0 if self._waiting_since is None else now - self._waiting_since
        return waited if waited >= self.allowed_seconds else 0.0
