"""From conditions to lifecycle states, with a checkpoint for every change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vllm_monitor.records import Condition, LifecycleState, StateCheckpoint, StateTransition

__all__ = ["CheckpointStore", "LifecycleTracker"]

IDLE_SECONDS = 60.0
"""PROCESSING_REQUESTS is left after this long without work, not after every burst."""

_STATES: Mapping[Condition, LifecycleState] = {
    Condition.OK: LifecycleState.PROCESSING_REQUESTS,
    Condition.IDLE: LifecycleState.SERVING,
    Condition.STARTING: LifecycleState.INITIALIZING,
    Condition.STOPPED: LifecycleState.TERMINATED,
    Condition.PAUSED: LifecycleState.PAUSED,
    Condition.STALLED: LifecycleState.DEGRADED,
    Condition.STARVED: LifecycleState.DEGRADED,
    Condition.SATURATED: LifecycleState.DEGRADED,
    Condition.API_FROZEN: LifecycleState.DEGRADED,
    Condition.ENGINE_DEAD: LifecycleState.CRITICAL_ERROR,
    Condition.WORKER_DEAD: LifecycleState.CRITICAL_ERROR,
    Condition.API_DEAD: LifecycleState.CRITICAL_ERROR,
    Condition.UNREACHABLE: LifecycleState.ERROR,
}
_ERRORS = frozenset({LifecycleState.ERROR, LifecycleState.CRITICAL_ERROR, LifecycleState.UNRECOVERABLE})


class CheckpointStore(Protocol):
    """What the tracker needs of the store."""

    def enqueue_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Hand a checkpoint to the writer without waiting; returns its id."""
        ...

    def get_checkpoints(self, *, limit: int = 100, target: str | None = None) -> list[StateCheckpoint]:
        """Checkpoints, newest first."""
        ...


@dataclass(slots=True)
class _Track:
    state: LifecycleState | None
    condition: Condition | None
    busy_at: float


class LifecycleTracker:
    """Follows the lifecycle state of any number of targets.

    On the first sight of a target its last checkpoint is loaded, so that the story goes on after a restart of the
    monitor. Not thread-safe: one owner.

    Args:
        persistence_manager: Where checkpoints go and come from; ``None`` keeps nothing.
        resume: Go on from the last stored checkpoint; a replay begins anew.
    """

    def __init__(self, persistence_manager: CheckpointStore | None = None, *, resume: bool = True) -> None:
        self._store = persistence_manager
        self._resumes = resume
        self._tracks: dict[str, _Track] = {}

    def observe(
        self,
        target: str,
        now: float,
        condition: Condition,
        reason: str,
        values: Mapping[str, float],
    ) -> tuple[LifecycleState, StateCheckpoint | None]:
        """Derive the state from the condition of this tick.

        Args:
            target: The server's URL.
            now: Unix seconds of the tick.
            condition: What is the matter.
            reason: Why, in a sentence.
            values: Canonical metric values, kept in the checkpoint.

        Returns:
            The state, and the checkpoint when state or condition changed.
        """
        track = self._tracks.get(target)
        if track is None:
            track = self._tracks[target] = self._resume(target)
        if condition is Condition.OK:
            track.busy_at = now
        state = self._next_state(track, condition, now)
        if state is track.state and condition is track.condition:
            return state, None
        checkpoint = StateCheckpoint(
            timestamp=now,
            state=state,
            previous_state=track.state,
            transition_type=_transition(track.state, state),
            arguments={},
            environment={},
            hardware_state={},
            error_context={"reason": reason} if state in _ERRORS else None,
            metrics=dict(values),
            target=target,
            condition=condition,
            reason=reason,
        )
        track.state, track.condition = state, condition
        if self._store is not None:
            self._store.enqueue_checkpoint(checkpoint)
        return state, checkpoint

    def _resume(self, target: str) -> _Track:
        store = self._store if self._resumes else None
        last = store.get_checkpoints(limit=1, target=target) if store is not None else []
        if last:
            return _Track(last[0].state, last[0].condition, last[0].timestamp)
        return _Track(None, None, 0.0)

    @staticmethod
    def _next_state(track: _Track, condition: Condition, now: float) -> LifecycleState:
        if condition is Condition.UNKNOWN:
            return track.state or LifecycleState.NOT_STARTED
        working = track.state is LifecycleState.PROCESSING_REQUESTS
        if condition is Condition.IDLE and working and now - track.busy_at < IDLE_SECONDS:
            return LifecycleState.PROCESSING_REQUESTS
        return _STATES[condition]


def _transition(before: LifecycleState | None, after: LifecycleState) -> StateTransition | None:
    if before is None:
        return None
    if after is LifecycleState.INITIALIZING:
        return StateTransition.STARTUP
    if after is LifecycleState.TERMINATED:
        return StateTransition.SHUTDOWN
    if after in _ERRORS:
        return StateTransition.EMERGENCY_STOP
    if LifecycleState.PAUSED in (before, after):
        return StateTransition.PAUSE_RESUME
    if before in _ERRORS:
        return StateTransition.ERROR_RECOVERY
    if before is LifecycleState.INITIALIZING:
        return StateTransition.STARTUP
    return StateTransition.OPERATION
