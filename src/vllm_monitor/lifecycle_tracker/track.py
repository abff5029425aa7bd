"""What is known of one server's life so far, and how it goes on after the monitor was away."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_monitor.lifecycle_tracker.absence import IDENTITY_KEY, identity_from
from vllm_monitor.lifecycle_tracker.inside_facts import ENGINE_KEY
from vllm_monitor.lifecycle_tracker.startup_timeline import StartupHistory
from vllm_monitor.picture import ServerIdentity, StartupPhase
from vllm_monitor.records import Condition, EngineNote, LifecycleState, StateCheckpoint

__all__ = ["COUNTS_KEY", "Facts", "Track"]

CHECKPOINTS_REMEMBERED = 200
NOTES_WAITING = 10_000
"""More than a reader finds at once; the oldest go first, and are read again by the next watch."""
COUNTS_KEY = "counts"
"""Where a checkpoint keeps restarts, crashes and failures in a row."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server was started with; it goes into every checkpoint.

    Args:
        arguments: Its arguments.
        environment: Variables of its environment that steer it.
        hardware_state: Hardware and software it runs on.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    hardware_state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Track:
    """The life of one server. Mutable, owned by the tracker."""

    state: LifecycleState | None = None
    condition: Condition | None = None
    since: float = 0.0
    busy_at: float = 0.0
    well_since: float | None = None
    facts: Facts = field(default_factory=Facts)
    identity: ServerIdentity = field(default_factory=ServerIdentity)
    startup: Mapping[StartupPhase, float] = field(default_factory=dict)
    restarts: int = 0
    crashes: int = 0
    failures_in_a_row: int = 0
    crash_facts: dict[str, Any] = field(default_factory=dict)
    history: StartupHistory = field(default_factory=StartupHistory)
    recent: deque[StateCheckpoint] = field(default_factory=lambda: deque(maxlen=CHECKPOINTS_REMEMBERED))
    engine: Mapping[str, Any] = field(default_factory=dict)
    told_inside: deque[EngineNote] = field(default_factory=lambda: deque(maxlen=NOTES_WAITING))
    has_dropped_notes: bool = False
    away_since: float | None = None
    resumed_at: float | None = None

    @classmethod
    def resumed(cls, checkpoints: list[StateCheckpoint], last_seen: float | None) -> Track:
        """The track that stored checkpoints tell.

        Args:
            checkpoints: Newest first.
            last_seen: Unix seconds of the newest stored sample of the server.
        """
        track = cls()
        for checkpoint in reversed(checkpoints):
            track.recent.append(checkpoint)
            track.history.remember(checkpoint)
        if not checkpoints:
            return track
        last = checkpoints[0]
        track.state, track.condition = last.state, last.condition
        track.since = track.busy_at = last.timestamp
        track.facts = Facts(last.arguments, last.environment, last.hardware_state)
        track.identity = identity_from(last.metadata.get(IDENTITY_KEY))
        engine = last.metadata.get(ENGINE_KEY)
        track.engine = engine if isinstance(engine, dict) else {}
        counts = last.metadata.get(COUNTS_KEY)
        if isinstance(counts, dict):
            track.restarts = int(counts.get("restarts", 0))
            track.crashes = int(counts.get("crashes", 0))
            track.failures_in_a_row = int(counts.get("failures_in_a_row", 0))
        track.crash_facts = dict(last.error_context or {})
        track.away_since = max(last.timestamp, last_seen or last.timestamp)
        return track

    def newest_at(self) -> float:
        """Time of the newest checkpoint, in unix seconds: none that follows may be older."""
        return self.recent[-1].timestamp if self.recent else 0.0

    def counts(self) -> dict[str, int]:
        """What a checkpoint keeps of the counts."""
        return {"restarts": self.restarts, "crashes": self.crashes, "failures_in_a_row": self.failures_in_a_row}
