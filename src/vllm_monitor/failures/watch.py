"""Follows one server and says when a failure has happened and when it is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vllm_monitor.failures.definitions import DEFINITIONS, Facts, FailureDefinition
from vllm_monitor.failures.memory_death import MemoryDeath
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import FAILED_STATES, STARTUP_STATES, Condition

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
        reason: What was the matter at the time, in words with numbers.
        ended_unseen: It ended while nobody could see it, so ``ended_at`` is when it was last seen.
    """

    target: str
    failure_type: str
    began_at: float
    happened_at: float
    ended_at: float | None = None
    reason: str = ""
    ended_unseen: bool = False


class FailureWatch:
    """Which failures a server has, tick by tick. Not thread-safe: one owner.

    Args:
        target: The server's URL.
        definitions: What counts as a failure.
    """

    def __init__(self, target: str, definitions: Iterable[FailureDefinition] = DEFINITIONS) -> None:
        self.target = target
        self._tracks = {definition.failure_type: _Track(definition) for definition in definitions}
        self._memory = MemoryDeath()
        self._has_served = True

    def resume(self, episodes: Iterable[Episode], now: float, last_seen: float | None = None) -> None:
        """Go on with the failures that had not ended when the watch did, before the first tick.

        One that is still met goes on; one that is not, or of which nothing can be seen for five minutes, is over and
        ended unseen.

        Args:
            episodes: What is known of earlier failures, in any order; the newest of each type counts.
            now: Unix seconds.
            last_seen: Unix seconds at which the server was last looked at: a failure went on until then.
        """
        newest: dict[str, Episode] = {}
        for episode in sorted(episodes, key=lambda one: one.happened_at):
            newest[episode.failure_type] = episode
        for failure_type, episode in newest.items():
            if episode.ended_at is None and failure_type in self._tracks:
                self._tracks[failure_type].resume(replace(episode, target=self.target), now, last_seen)
                if failure_type == "startup_failure":
                    self._has_served = False
                elif failure_type == "memory_exhaustion":
                    self._memory.go_on()

    def observe(self, snapshot: Snapshot, facts: Facts) -> list[Episode]:
        """One tick.

        Returns:
            Failures that have happened now (``ended_at`` is ``None``), and those that are over.
        """
        if snapshot.state in STARTUP_STATES:
            self._has_served = False
        elif snapshot.state not in FAILED_STATES:
            self._has_served = True
        facts = replace(
            facts,
            failed_while_starting=not self._has_served and snapshot.state in FAILED_STATES,
            killed_for_memory=self._memory.observe(snapshot),
        )
        found = [track.observe(self.target, snapshot, facts) for track in self._tracks.values()]
        return [episode for episode in found if episode is not None]

    def current(self) -> list[Episode]:
        """The failures that go on."""
        return [track.episode for track in self._tracks.values() if track.episode is not None]

    def undecided(self) -> frozenset[str]:
        """The failure types of which the newest tick could not tell."""
        return frozenset(name for name, track in self._tracks.items() if track.is_undecided)


class _Track:
    """One definition over time."""

    def __init__(self, definition: FailureDefinition) -> None:
        self._definition = definition
        self.episode: Episode | None = None
        self.is_undecided = True
        self._is_unseen = False
        self._met_since: float | None = None
        self._last_met = 0.0
        self._clear_from = 0.0
        self._last_known = 0.0
        self._now = 0.0

    def resume(self, episode: Episode, now: float, last_seen: float | None) -> None:
        self.episode = episode
        self._is_unseen = True
        self._last_met = max(episode.happened_at, min(now, last_seen or episode.happened_at))
        self._clear_from = self._last_known = self._now = now  # rates are not known at once: look for a while

    def observe(self, target: str, snapshot: Snapshot, facts: Facts) -> Episode | None:
        now = snapshot.timestamp
        if now < self._now:  # the clock was set back: what was held so far means nothing
            self._met_since = None
            self._last_met = self._clear_from = self._last_known = now
        self._now = now
        is_failing = self._definition.is_failing(snapshot, facts)
        if self.episode is not None and self._definition.is_death and snapshot.condition is Condition.UNREACHABLE:
            is_failing = True
        self.is_undecided = is_failing is None
        if is_failing is None:
            if self.episode is None:
                self._met_since = None
                return None
            if now - self._last_known <= LONGEST_UNKNOWN_SECONDS:
                return None
            self._is_unseen = True
            return self._over()
        self._last_known = now
        if not is_failing:
            self._met_since = None
            over = self.episode is not None and now - self._clear_from >= self._definition.clear_seconds
            return self._over() if over else None
        self._last_met = self._clear_from = now
        self._is_unseen = False
        if self._met_since is None:
            self._met_since = now
        if self.episode is None and now - self._met_since >= self._definition.hold_seconds:
            reason = self._definition.words(snapshot, facts)
            self.episode = Episode(target, self._definition.failure_type, self._met_since, now, reason=reason)
            return self.episode
        return None

    def _over(self) -> Episode | None:
        episode, self.episode = self.episode, None
        unseen, self._is_unseen = self._is_unseen, False
        if episode is None:
            return None
        return replace(episode, ended_at=max(self._last_met, episode.happened_at), ended_unseen=unseen)
