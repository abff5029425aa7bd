"""``LifecycleTracker``: which state each server is in, with a checkpoint for every change."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.lifecycle_tracker.absence import IDENTITY_KEY, changes_between, identity_values
from vllm_monitor.lifecycle_tracker.checkpoint_store import CheckpointStore
from vllm_monitor.lifecycle_tracker.evidence_states import PHASE_STATES, state_of
from vllm_monitor.lifecycle_tracker.inside_facts import ENGINE_KEY, INSIDE_KEY
from vllm_monitor.lifecycle_tracker.inside_steps import inside_steps
from vllm_monitor.lifecycle_tracker.life_figures import LifeFigures
from vllm_monitor.lifecycle_tracker.report import report_of
from vllm_monitor.lifecycle_tracker.startup_timeline import METADATA_KEY, PhaseTiming, phase_seconds
from vllm_monitor.lifecycle_tracker.step import Step
from vllm_monitor.lifecycle_tracker.track import CHECKPOINTS_REMEMBERED, COUNTS_KEY, NOTES_WAITING, Facts, Track
from vllm_monitor.lifecycle_tracker.transitions import (
    FAILED_STATES,
    RUNNING_STATES,
    STARTUP_STATES,
    TRANSITIONS,
    check_transition,
    path,
)
from vllm_monitor.picture import LifeEvidence, ServerIdentity, StartupPhase
from vllm_monitor.records import Condition, EngineNote, LifecycleState, StateCheckpoint, StateTransition

__all__ = ["LifecycleTracker", "Observed"]

WELL_SECONDS = 60.0
"""A server that has run for so long is over its last failure."""
FAILURES_TO_GIVE_UP = 3
"""After so many failures in a row, none of them followed by a minute of service, starting again is no cure."""
RESUME_WAIT_SECONDS = 10.0
"""How long to wait, after the monitor was away, for a page that tells what happened meanwhile."""


_STARTING = frozenset({*STARTUP_STATES, LifecycleState.RECOVERING})
_AT_WORK = frozenset({Condition.OK, Condition.IDLE})


@dataclass(frozen=True, slots=True)
class Observed:
    """What one tick meant.

    Args:
        state: The state after it.
        checkpoints: One for each change, oldest first; several when states were passed through between two looks.
        away_seconds: How long nobody watched, told once, with the first tick that knows more.
        meanwhile: What happened in that time, in words.
    """

    state: LifecycleState
    checkpoints: tuple[StateCheckpoint, ...] = ()
    away_seconds: float | None = None
    meanwhile: tuple[str, ...] = ()


class LifecycleTracker:
    """Follows the lifecycle of any number of servers: by evidence (:meth:`observe`) and by what it is told.

    On the first sight of a server its stored checkpoints are loaded, so the story goes on after a restart of the
    monitor, and the time it was away is part of it. Which state may follow which is in ``transitions.TRANSITIONS``.
    Thread-safe.

    Args:
        persistence_manager: Where checkpoints go and come from; ``None`` keeps nothing.
        resume: Go on from the last stored checkpoint; a replay begins anew.
        clock: Where the time of direct calls comes from.
    """

    def __init__(
        self,
        persistence_manager: CheckpointStore | None = None,
        *,
        resume: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._store = persistence_manager
        self._resumes = resume
        self._clock = clock if clock is not None else SystemClock()
        self._lock = threading.RLock()
        self._tracks: dict[str, Track] = {}

    # -- by evidence --------------------------------------------------------------------------------------------

    def resume(self, target: str) -> None:
        """Go on from what is stored of a server, also if another process stored it. Not for an event loop."""
        with self._lock:
            self._tracks.pop(target, None)
            self._track(target)

    def observe(
        self,
        target: str,
        now: float,
        evidence: LifeEvidence,
        values: Mapping[str, float],
        *,
        guardrails: Sequence[str] = (),
        interventions: Sequence[str] = (),
    ) -> Observed:
        """Derive the state from what a tick shows.

        Args:
            target: The server's URL.
            now: Unix seconds of the tick.
            evidence: What the tick shows.
            values: Canonical metric values, kept in the checkpoints.
            guardrails: Names of the guardrails that are violated.
            interventions: Names of the interventions under way.
        """
        with self._lock:
            track = self._track(target)
            step = Step(
                at=now,
                condition=evidence.condition,
                reason=evidence.reason,
                values=values,
                guardrails=guardrails,
                interventions=interventions,
            )
            away, meanwhile, first = self._came_back(track, target, evidence, step)
            if first is None and track.away_since is not None:
                return Observed(track.state or LifecycleState.NOT_STARTED)  # waits to know what happened meanwhile
            checkpoints = [] if first is None else [first]
            self._note_identity(track, evidence.identity)
            if evidence.condition is Condition.OK or track.busy_at > now:
                track.busy_at = now
            checkpoints += self._startup_steps(track, target, evidence, step)
            state = state_of(evidence, track.state, now - track.busy_at)
            if state is LifecycleState.CRITICAL_ERROR:
                checkpoints += self._fail(track, target, evidence, step)
            elif self._is_news(track, state, evidence.condition):
                if state is LifecycleState.ERROR:
                    step = replace(step, error_context={"reason": evidence.reason})
                checkpoints += self._advance(track, target, state, step)
            self._note_well(track, now)
            for checkpoint in checkpoints:
                if self._store is not None:
                    self._store.enqueue_checkpoint(checkpoint)
            return Observed(track.state or LifecycleState.NOT_STARTED, tuple(checkpoints), away, tuple(meanwhile))

    def note_inside(self, target: str, now: float, notes: Sequence[EngineNote]) -> tuple[StateCheckpoint, ...]:
        """Take in what the part inside a server told: a checkpoint for each fact, of the state that holds.

        While no state is known, or it is not known yet what happened while the monitor was away, they wait.

        Args:
            target: The server's URL.
            now: Unix seconds of the tick, before its :meth:`observe`.
            notes: What was told since the tick before; what is in the story already is passed over.

        Returns:
            The checkpoints, oldest first.
        """
        with self._lock:
            track = self._track(target)
            track.has_dropped_notes |= len(track.told_inside) + len(notes) > NOTES_WAITING
            track.told_inside.extend(notes)
            checkpoints: list[StateCheckpoint] = []
            for step in inside_steps(track, target, now):
                state = track.state
                assert state is not None  # noqa: S101  # there are no steps without one
                checkpoints.append(self._checkpoint(track, target, state, state, step, condition=track.condition))
            for checkpoint in checkpoints:
                if self._store is not None:
                    self._store.enqueue_checkpoint(checkpoint)
            return tuple(checkpoints)

    def waits_inside(self, target: str) -> bool:
        """Whether something that the inside told is not in the story: it waits, or there was no room for it."""
        with self._lock:
            track = self._track(target)
            return bool(track.told_inside) or track.has_dropped_notes

    def last_inside(self, target: str, kinds: Collection[str]) -> Mapping[str, Any] | None:
        """The newest fact of these kinds that the inside told, among the newest checkpoints."""
        with self._lock:
            told = (one.metadata.get(INSIDE_KEY) for one in reversed(self._track(target).recent))
            return next((facts for facts in told if isinstance(facts, dict) and facts.get("kind") in kinds), None)

    def set_facts(self, target: str, facts: Facts) -> None:
        """Keep in the checkpoints from now on what a server was started with (redacted when stored)."""
        with self._lock:
            self._track(target).facts = facts

    def startup_timeline(self, target: str, now: float) -> tuple[PhaseTiming, ...]:
        """The phases of the newest start of a server that was seen, beside what they usually take."""
        with self._lock:
            track = self._track(target)
            return track.history.timeline(track.startup, now)

    def figures(self, target: str, now: float) -> LifeFigures:
        """Figures of a server's life that guardrails speak of."""
        with self._lock:
            track = self._track(target)
            phases = track.history.timeline(track.startup, now) if track.state in _STARTING else ()
            phase = phases[-1] if phases else None
            return LifeFigures(
                state_since=track.since,
                restarts=track.restarts,
                crashes=track.crashes,
                failures_in_a_row=track.failures_in_a_row,
                startup_phase="" if phase is None else phase.phase.value,
                startup_phase_seconds=0.0 if phase is None else phase.seconds,
                startup_is_slow=phase is not None and phase.is_slow,
            )

    # -- by what it is told -------------------------------------------------------------------------------------

    def track_startup(
        self,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        hardware_info: Mapping[str, Any] | None = None,
        *,
        target: str = "",
    ) -> StateCheckpoint:
        """A server is being started. From whatever state it was in: one that still ran must have ended unseen.

        Args:
            arguments: What it is started with.
            environment: Its environment; secrets are redacted when it is stored.
            hardware_info: What it runs on.
            target: The server's URL.

        Returns:
            The checkpoint of ``VALIDATING_ENVIRONMENT``.
        """
        with self._lock:
            track = self._track(target)
            track.facts = Facts(dict(arguments), dict(environment or {}), dict(hardware_info or {}))
            if track.state is LifecycleState.VALIDATING_ENVIRONMENT:
                self._tell(track, target, LifecycleState.TERMINATED, Step(at=self._clock.now()))
            return self._tell(track, target, LifecycleState.VALIDATING_ENVIRONMENT, Step(at=self._clock.now()))

    def track_shutdown(
        self, reason: str = "normal", *, target: str = "", exit_code: int | None = None, is_crash: bool = False
    ) -> StateCheckpoint:
        """A server has ended.

        Args:
            reason: Why, in words.
            target: The server's URL.
            exit_code: Its exit code, where it is known.
            is_crash: Nobody asked for it. An exit code of 0 proves nothing: vLLM ends with 0 when its engine died.

        Returns:
            The checkpoint of ``TERMINATED``, or of ``CRITICAL_ERROR`` after a crash.
        """
        context = {"reason": reason} if exit_code is None else {"reason": reason, "exit_code": exit_code}
        with self._lock:
            track = self._track(target)
            if is_crash:
                step = Step(at=self._clock.now(), reason=reason, error_context=context)
                track.crashes += 1
                track.failures_in_a_row += 1
                return self._tell(track, target, LifecycleState.CRITICAL_ERROR, step)
            step = Step(at=self._clock.now(), reason=reason, metadata={"shutdown": context})
            if track.state is not None and LifecycleState.SHUTTING_DOWN in TRANSITIONS[track.state]:
                self._tell(track, target, LifecycleState.SHUTTING_DOWN, step)
            return self._tell(track, target, LifecycleState.TERMINATED, step)

    def transition_to_state(
        self,
        new_state: LifecycleState,
        transition_type: StateTransition | None = None,
        context: Mapping[str, Any] | None = None,
        *,
        target: str = "",
    ) -> StateCheckpoint:
        """A server has entered a state.

        Args:
            new_state: Which.
            transition_type: What the step is called; ``None`` takes the table's word.
            context: Facts to keep: the error's for a failed state, else in the checkpoint's metadata.
            target: The server's URL.

        Raises:
            InvalidTransitionError: When the state cannot follow the one before; the hint names those that can.
        """
        with self._lock:
            track = self._track(target)
            before = track.state if track.state is not None else LifecycleState.NOT_STARTED
            if not (track.state is None and new_state is before):
                check_transition(before, new_state, transition_type)
            failed = new_state in FAILED_STATES
            facts = None if context is None else dict(context)
            step = Step(
                at=self._clock.now(),
                reason=str((context or {}).get("reason", "")),
                error_context=facts if failed else None,
                metadata=None if failed or facts is None else {"context": facts},
            )
            return self._tell(track, target, new_state, step)

    def get_state_report(self, target: str | None = None) -> dict[str, Any]:
        """Where servers stand, as JSON values.

        Args:
            target: One server; ``None`` gives all of them, by URL, under ``targets``.
        """
        now = self._clock.now()
        with self._lock:
            if target is not None:
                return report_of(target, self._track(target), now)
            return {"targets": {name: report_of(name, track, now) for name, track in self._tracks.items()}}

    # -- inside -------------------------------------------------------------------------------------------------

    def _track(self, target: str) -> Track:
        track = self._tracks.get(target)
        if track is None:
            store = self._store if self._resumes else None
            track = Track()
            if store is not None:
                stored = store.get_checkpoints(limit=CHECKPOINTS_REMEMBERED, target=target)
                seen = [sample["timestamp"] for sample in store.latest(target=target)] if stored else []
                track = Track.resumed(stored, max(seen, default=None))
            self._tracks[target] = track
        return track

    def _tell(self, track: Track, target: str, state: LifecycleState, step: Step) -> StateCheckpoint:
        track.away_since = None  # who tells us what happens was not away
        checkpoints = self._advance(track, target, state, step)
        if self._store is not None:
            for checkpoint in checkpoints:
                self._store.save_checkpoint(checkpoint)
        return checkpoints[-1]

    def _came_back(
        self, track: Track, target: str, evidence: LifeEvidence, step: Step
    ) -> tuple[float | None, list[str], StateCheckpoint | None]:
        """The first tick, after the monitor was away, that knows more than the last one before."""
        if track.away_since is None:
            return None, [], None
        if track.resumed_at is None:
            track.resumed_at = step.at
        if evidence.condition is Condition.UNKNOWN and 0 <= step.at - track.resumed_at < RESUME_WAIT_SECONDS:
            return None, [], None
        away_seconds = max(0.0, track.resumed_at - track.away_since)
        restarted, meanwhile = changes_between(track.identity, evidence.identity)
        if restarted:
            track.restarts += 1
            track.identity = evidence.identity
            track.crash_facts = {}
        resumed = {"away_since": track.away_since, "away_seconds": away_seconds, "meanwhile": meanwhile}
        track.away_since = None
        known = track.state if track.state is not None else LifecycleState.NOT_STARTED
        checkpoint = self._checkpoint(
            track, target, known, track.state, replace(step, metadata={"resumed": resumed}), condition=track.condition
        )
        return away_seconds, meanwhile, checkpoint

    def _note_identity(self, track: Track, identity: ServerIdentity) -> None:
        restarted, _ = changes_between(track.identity, identity)
        if restarted:
            track.restarts += 1
        before = track.identity
        track.identity = ServerIdentity(
            start_time=identity.start_time if identity.start_time is not None else before.start_time,
            generation_tokens_total=(
                identity.generation_tokens_total
                if identity.generation_tokens_total is not None
                else before.generation_tokens_total
            ),
            version=identity.version or before.version,
            models=identity.models or before.models,
        )

    def _startup_steps(self, track: Track, target: str, evidence: LifeEvidence, step: Step) -> list[StateCheckpoint]:
        """A checkpoint for each phase of a start that has begun since the last tick, with its own time."""
        starting = evidence.condition is Condition.STARTING
        if not (starting or track.state in STARTUP_STATES or track.state is LifecycleState.RECOVERING):
            return []
        checkpoints: list[StateCheckpoint] = []
        if starting and track.state in FAILED_STATES:
            words = replace(step, reason=f"it is being started again after {track.condition or 'a failure'}")
            checkpoints += self._advance(track, target, LifecycleState.RECOVERING, words)
        known = track.startup if set(track.startup) <= set(evidence.startup) else {}
        for phase, at in evidence.startup.items():
            if known.get(phase) == at or (phase is StartupPhase.ACCEPTING and starting):
                continue
            state = PHASE_STATES[phase]
            track.startup = {one: when for one, when in evidence.startup.items() if when <= at or one is phase}
            metadata: dict[str, Any] = {"phase": phase.value}
            if phase is StartupPhase.ACCEPTING:
                metadata[METADATA_KEY] = phase_seconds(evidence.startup)
            entered = replace(step, at=max(at, track.since, track.newest_at()), metadata=metadata)
            if state is not track.state:
                checkpoints += self._advance(track, target, state, entered)
        track.startup = dict(evidence.startup)
        for checkpoint in checkpoints:
            track.history.remember(checkpoint)
        return checkpoints

    def _fail(self, track: Track, target: str, evidence: LifeEvidence, step: Step) -> list[StateCheckpoint]:
        """Entering a failure, or learning more about one: the exit code and the log come after the death."""
        entering = track.state not in FAILED_STATES or track.state is LifecycleState.ERROR
        facts: dict[str, Any] = {} if entering else dict(track.crash_facts)
        facts["condition"] = evidence.condition.value
        facts["reason"] = evidence.reason
        if entering and track.state is not None:
            facts["state_before"] = track.state.value
        if evidence.first_fatal:
            facts["first_fatal_line"] = evidence.first_fatal
        if evidence.exit_code is not None:
            facts["exit_code"] = evidence.exit_code
        if evidence.start_failed:
            facts["start_failed"] = True
        signature = ("first_fatal_line", "exit_code", "start_failed", "condition")
        if not entering and all(facts.get(key) == track.crash_facts.get(key) for key in signature):
            return []
        if entering:
            track.crashes += 1
            track.failures_in_a_row += 1
        track.crash_facts = facts
        state = LifecycleState.CRITICAL_ERROR
        if track.failures_in_a_row >= FAILURES_TO_GIVE_UP or track.state is LifecycleState.UNRECOVERABLE:
            state = LifecycleState.UNRECOVERABLE
            facts["failures_in_a_row"] = track.failures_in_a_row
        return self._advance(track, target, state, replace(step, error_context=facts))

    @staticmethod
    def _is_news(track: Track, state: LifecycleState, condition: Condition) -> bool:
        """Whether a tick is worth a checkpoint: not every pause between two bursts, and not that nothing is known."""
        if state is track.state and condition is not track.condition and {condition, track.condition} <= _AT_WORK:
            track.condition = condition
            return False
        known = track.state is not None or condition is not Condition.UNKNOWN
        return known and (state is not track.state or condition is not track.condition)

    def _note_well(self, track: Track, now: float) -> None:
        if track.state not in RUNNING_STATES or track.state is LifecycleState.DEGRADED:
            track.well_since = None
        elif track.well_since is None or track.well_since > now:
            track.well_since = now
        elif now - track.well_since >= WELL_SECONDS:
            track.failures_in_a_row = 0

    def _advance(self, track: Track, target: str, state: LifecycleState, step: Step) -> list[StateCheckpoint]:
        """Enter a state, through those that must lie between."""
        before = track.state
        checkpoints = []
        for passed in path(before, state)[:-1] if before is not None else ():
            inferred = replace(step, metadata={"inferred": True}, error_context=None)
            checkpoints.append(self._checkpoint(track, target, passed, track.state, inferred, condition=None))
            track.state = passed
        last = track.state
        checkpoints.append(self._checkpoint(track, target, state, last, step, condition=step.condition))
        if state is not last:
            track.since = step.at
        track.state, track.condition = state, step.condition
        return checkpoints

    def _checkpoint(
        self,
        track: Track,
        target: str,
        state: LifecycleState,
        previous: LifecycleState | None,
        step: Step,
        *,
        condition: Condition | None,
    ) -> StateCheckpoint:
        kind = None if previous is None or previous is state else check_transition(previous, state)
        metadata = {
            **(step.metadata or {}),
            COUNTS_KEY: track.counts(),
            IDENTITY_KEY: identity_values(track.identity),
            **({ENGINE_KEY: dict(track.engine)} if track.engine else {}),
        }
        checkpoint = StateCheckpoint(
            timestamp=step.at,
            state=state,
            previous_state=previous,
            transition_type=kind,
            arguments=dict(track.facts.arguments),
            environment=dict(track.facts.environment),
            hardware_state=dict(track.facts.hardware_state),
            error_context=step.error_context,
            interventions_triggered=list(step.interventions),
            guardrails_enforced=list(step.guardrails),
            metrics=dict(step.values or {}),
            metadata=metadata,
            target=target,
            condition=condition,
            reason=step.reason,
            checkpoint_id=step.checkpoint_id,
        )
        track.recent.append(checkpoint)
        return checkpoint
