"""Follows one server and says when a failure has happened and when it is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vllm_monitor.failures.definitions import DEFINITIONS, Facts, FailureDefinition
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import FAILED_STATES, STARTUP_STATES

__all__ = ["Episode", "FailureWatch"]

LONGEST_UNKNOWN_SECONDS = 300.0
"""A failure of which nothing can be seen for so long is over as far as we can tell."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One failure of one server, from its beginning to its end.

    Args:
        target: The server's URL.
        failure_type: What failed.
        began_at: Unix seconds at which the definition was first met.
        happened_at: Unix seconds at which it had been met for long enough to count.
        ended_at: Unix seconds at which it was last met; ``None`` while it goes on.
        reason: The picture's sentence at the time.
    """

    target: str
    failure_type: str
    began_at: float
    happened_at: float
    ended_at: float | None = None
    reason: str = ""


class FailureWatch:
    """Which failures a server has, tick by tick. Not thread-safe: one owner.

    Args:
        target: The server's URL.
        definitions: What counts as a failure.
    """

    def __init__(self, target: str, definitions: Iterable[FailureDefinition] = DEFINITIONS) -> None:
        self.target = target
        self._tracks = [_Track(definition) for definition in definitions]
        self._has_served = True

    def observe(self, snapshot: Snapshot, facts: Facts) -> list[Episode]:
        """One tick.

        Returns:
            Failures that have happened now (``ended_at`` is ``None``), and those that are over.
        """
        if snapshot.state in STARTUP_STATES:
            self._has_served = False
        elif snapshot.state not in FAILED_STATES:
            self._has_served = True
        facts = replace(facts, failed_while_starting=not self._has_served and snapshot.state in FAILED_STATES)
        found = (track.observe(self.target, snapshot, facts) for track in self._tracks)
        return [episode for episode in found if episode is not None]

    def current(self) -> list[Episode]:
        """The failures that go on."""
        return [track.episode for track in self._tracks if track.episode is not None]


class _Track:
    """One definition over time."""

    def __init__(self, definition: FailureDefinition) -> None:
        self._definition = definition
        self.episode: Episode | None = None
        self._met_since: float | None = None
        self._last_met = 0.0
        self._last_known = 0.0
        self._now = 0.0

    def observe(self, target: str, snapshot: Snapshot, facts: Facts) -> Episode | None:
        now = snapshot.timestamp
        if now < self._now:  # the clock was set back: what was held so far means nothing
            self._met_since = None
            self._last_met = self._last_known = now
        self._now = now
        is_failing = self._definition.is_failing(snapshot, facts)
        if is_failing is None:
            if self.episode is None:
                self._met_since = None
                return None
            return self._over() if now - self._last_known > LONGEST_UNKNOWN_SECONDS else None
        self._last_known = now
        if not is_failing:
            self._met_since = None
            over = self.episode is not None and now - self._last_met >= self._definition.clear_seconds
            return self._over() if over else None
        self._last_met = now
        if self._met_since is None:
            self._met_since = now
        if self.episode is None and now - self._met_since >= self._definition.hold_seconds:
            self.episode = Episode(target, self._definition.failure_type, self._met_since, now, reason=snapshot.reason)
            return self.episode
        return None

    def _over(self) -> Episode | None:
        episode, self.episode = self.episode, None
        return None if episode is None else replace(episode, ended_at=max(self._last_met, episode.happened_at))
