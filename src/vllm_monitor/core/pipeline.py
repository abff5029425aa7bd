"""The one place where the rooms meet: ``step`` turns observations into stored samples and a judged picture.

Deterministic given the observations and the times of the ticks, so that a recorded incident replays through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_monitor.collectors import ProbeSampler, ReadMark, ServerFacts
from vllm_monitor.core.inside_progress import inside_event
from vllm_monitor.core.inside_stories import InsideStories
from vllm_monitor.core.stored_story import read_story
from vllm_monitor.core.target_failures import TargetFailures
from vllm_monitor.core.target_predictions import PredictionSource, TargetPredictions
from vllm_monitor.failures import DEFINITIONS, Episode, event_of
from vllm_monitor.guardrails import Guardrails, make_context
from vllm_monitor.lifecycle_tracker import Facts, LifecycleTracker, LifeFigures, Observed
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import Snapshot, TargetPicture
from vllm_monitor.predictive_failure_detection import Predictor, Settled
from vllm_monitor.records import (
    FAILURE_TYPES,
    Alert,
    AlertState,
    Condition,
    EngineObservation,
    Event,
    FailurePrediction,
    LogObservation,
    Observation,
    PageObservation,
    Severity,
    StateCheckpoint,
)

__all__ = ["TargetPipeline", "Tick"]

_LOUD = frozenset(
    {
        Condition.STALLED,
        Condition.ENGINE_DEAD,
        Condition.WORKER_DEAD,
        Condition.API_DEAD,
        Condition.API_FROZEN,
    }
)
_QUIET = frozenset({Condition.OK, Condition.IDLE, Condition.STARTING, Condition.UNKNOWN})
_MEANT = frozenset({Condition.PAUSED, Condition.STOPPED})
_DEAD = frozenset({Condition.ENGINE_DEAD, Condition.WORKER_DEAD, Condition.API_DEAD})
_DEATHS = frozenset(one.failure_type for one in DEFINITIONS if one.is_death)
_WELL = frozenset({Condition.OK, Condition.IDLE})
LONGEST_HOLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Tick:
    """What one step found.

    Args:
        snapshot: The picture after the step.
        events: What happened since the step before, oldest first.
        checkpoints: A checkpoint for each change of state or condition, and for what the inside told, oldest first.
        alerts: Alerts that began to fire or were resolved.
        firing: Alerts that fire after it, oldest first.
        failures: Failures that have happened (those have no end), and those that are over.
        predictions: New predictions.
        settled: Predictions of which it is known now what became of them.
        expected: Predictions that are open after it, oldest first.
        abstains: Why nothing is predicted at the moment; empty when something might be.
        suppressed: Predictions that the daily budget has held back, by failure type.
    """

    snapshot: Snapshot
    events: tuple[Event, ...]
    checkpoints: tuple[StateCheckpoint, ...] = ()
    alerts: tuple[Alert, ...] = ()
    firing: tuple[Alert, ...] = ()
    failures: tuple[Episode, ...] = ()
    predictions: tuple[FailurePrediction, ...] = ()
    settled: tuple[Settled, ...] = ()
    expected: tuple[FailurePrediction, ...] = ()
    abstains: str = ""
    suppressed: Mapping[str, int] = field(default_factory=dict)


class TargetPipeline:
    """Takes the observations of one target through store, picture, lifecycle, failures and predictions.

    Not thread-safe: one owner.

    Args:
        target: The server's URL, or the name of a recording.
        tracker: Follows the lifecycle; may be shared by many targets of one owner.
        guardrails: Conditions that must not be met; may be shared likewise. ``None`` raises no alerts.
        store: Where samples, checkpoints and events go; ``None`` keeps nothing.
        labels: The operator's labels of the target, for conditions.
        predictor: Predicts failures; ``None`` for none.
        source: Predicts beside it, and stores that itself: the plugins.
        ttft_objective_seconds: Longest time to first token that is still good.
        inter_token_objective_seconds: Longest time between two tokens that is still good.
        longest_hole_seconds: A stretch without a look that is longer than this may hide a failure.
    """

    def __init__(
        self,
        target: str,
        *,
        tracker: LifecycleTracker,
        guardrails: Guardrails | None = None,
        store: PersistenceManager | None = None,
        labels: Mapping[str, str] | None = None,
        predictor: Predictor | None = None,
        source: PredictionSource | None = None,
        ttft_objective_seconds: float = 2.0,
        inter_token_objective_seconds: float = 0.2,
        longest_hole_seconds: float = LONGEST_HOLE_SECONDS,
    ) -> None:
        self.target = target
        self.picture = TargetPicture(target)
        self._tracker = tracker
        self._guardrails = guardrails
        self._labels = dict(labels or {})
        self._store = store
        self._sampler = ProbeSampler()
        self._condition: Condition | None = None
        self._own_events: list[Event] = []
        self._longest_hole = longest_hole_seconds
        self._failures = TargetFailures(
            target,
            ttft_objective_seconds=ttft_objective_seconds,
            inter_token_objective_seconds=inter_token_objective_seconds,
        )
        self._predictions = TargetPredictions(
            target, store=store, predictor=predictor, source=source, longest_hole_seconds=longest_hole_seconds
        )
        self._restarts: int | None = None
        self._has_died = False
        self._inside = InsideStories(
            target,
            store,
            ttft_objective_seconds=ttft_objective_seconds,
            inter_token_objective_seconds=inter_token_objective_seconds,
        )

    def resume(self, now: float) -> None:
        """Go on from what is stored of failures and predictions, before the first step. Not for an event loop.

        The lifecycle is to be resumed before.

        Args:
            now: Unix seconds.
        """
        if self._store is None:
            return
        self._inside.resume(now, self._tracker.last_inside(self.target, ("rejected", "rejected_over")))
        story = read_story(self._store, self.target, now=now, longest_hole_seconds=self._longest_hole)
        self._failures.resume(story.failures, now, story.last_seen)
        self._predictions.resume(now, story)
        self._has_died = any(one.failure_type in _DEATHS for one in self._failures.current())
        self._restarts = self._tracker.figures(self.target, now).restarts

    def note_mitigation(self, at: float) -> None:
        """An attempt to mitigate began at this time (unix seconds): predictions that are open are scored apart."""
        self._predictions.note_mitigation(at)

    def take_learned(self) -> dict[str, Any] | None:
        """What is usual at each load; ``None`` when nothing was learned since this was last asked."""
        return self._failures.take_learned()

    def restore(self, learned: dict[str, Any]) -> None:
        """Go on from what an earlier watch has learned, see :meth:`take_learned`."""
        self._failures.restore(learned)

    @property
    def inside_read(self) -> Mapping[str, ReadMark]:
        """How far the writers inside the server were read whose news are stored."""
        return self._inside.read

    def save_inside_progress(self) -> None:
        """Keep how far the inside was read. Waits for the disk; may be called from another thread."""
        self._inside.save_progress()

    def step(self, now: float, observations: Sequence[Observation]) -> Tick:
        """One tick.

        Args:
            now: Unix seconds of the tick.
            observations: All results that became visible since the tick before.
        """
        ordered = sorted(observations, key=lambda observation: observation.visible_at)
        self._save_samples(now, ordered)
        for observation in ordered:
            self.picture.observe(observation)
        judgement = self.picture.judge(now)
        values = self.picture.values(now)
        firing = [alert.name for alert in self._guardrails.firing(self.target)] if self._guardrails else []
        notes = self._inside.take_notes()
        told = self._tracker.note_inside(self.target, now, notes)
        observed = self._tracker.observe(self.target, now, self.picture.life(), values, guardrails=firing)
        events = self._own_events + self.picture.take_events()
        if observed.away_seconds is not None:
            events.append(_came_back(self.target, now, observed))
        self._own_events = []
        events += [event for note in notes if (event := inside_event(self.target, note)) is not None]
        if judgement.condition is not self._condition:
            if self._condition is not None:
                events.append(_change(self.target, now, self._condition, judgement.condition, judgement.reason))
            self._condition = judgement.condition
        snapshot = self.picture.snapshot(now, observed.state, values)
        figures = self._tracker.figures(self.target, now)
        is_another = any(event.event_type == "server_changed" for event in events)
        failures = self._failures.observe(snapshot, is_host_pressed=self.picture.is_host_pressed, is_another=is_another)
        step = self._predictions.observe(
            snapshot,
            next((one for one in reversed(ordered) if isinstance(one, PageObservation)), None),
            failures,
            self._failures.current(),
            meant=self._is_meant(snapshot.condition, figures.restarts),
            undecided=self._failures.undecided(),
        )
        events += [event_of(one, now) for one in failures]
        events += step.events
        alerts = self._evaluate(now, snapshot, observed, figures)
        events += [_told(now, alert) for alert in alerts]
        if self._store is not None:
            for event in events:
                self._store.enqueue_event(event)
        if not self._tracker.waits_inside(self.target):
            self._inside.settle()
        still = () if self._guardrails is None else tuple(self._guardrails.firing(self.target))
        return Tick(
            snapshot,
            tuple(events),
            (*told, *observed.checkpoints),
            alerts,
            still,
            tuple(failures),
            step.made,
            step.settled,
            self._predictions.open(),
            step.abstains,
            step.suppressed,
        )

    def _is_meant(self, condition: Condition, restarts: int) -> bool:
        """Whether somebody has stopped, paused or restarted the server, and it did not die before."""
        was_restarted = self._restarts is not None and restarts > self._restarts
        self._restarts = restarts
        meant = condition in _MEANT or (was_restarted and not self._has_died)
        if condition in _DEAD:
            self._has_died = True
        elif was_restarted or condition in _WELL:
            self._has_died = False
        return meant

    def _evaluate(self, now: float, snapshot: Snapshot, observed: Observed, figures: LifeFigures) -> tuple[Alert, ...]:
        if self._guardrails is None:
            return ()
        life = asdict(figures)
        facts = {
            **life,
            "state_seconds": max(0.0, now - life.pop("state_since")),
            "labels": self._labels,
            "host_pressed": self.picture.is_host_pressed,
        }
        predicted = self._predictions.open_probabilities()
        if predicted:
            facts["predictions"] = {**dict.fromkeys(FAILURE_TYPES, 0.0), **predicted}
        checkpoint_id = observed.checkpoints[-1].checkpoint_id if observed.checkpoints else None
        return self._guardrails.evaluate(
            self.target, now, make_context(snapshot, facts), snapshot.values, checkpoint_id=checkpoint_id
        )

    def set_facts(self, facts: ServerFacts) -> None:
        """A new life of the server was seen: its checkpoints say what it was started with."""
        known = Facts(facts.arguments, facts.environment, facts.hardware_state)
        self._tracker.set_facts(self.target, known)

    def note_late(self, now: float, late_seconds: float) -> None:
        """This process came late to its next look; told with the next step."""
        message = f"the monitor itself came {late_seconds:.1f} s late: its own host gives it too little CPU"
        self._own_events.append(
            Event(
                timestamp=now,
                event_type="monitor_late",
                message=message,
                severity=Severity.WARNING,
                target=self.target,
                data={"late_seconds": late_seconds},
            )
        )

    def _save_samples(self, now: float, observations: Sequence[Observation]) -> None:
        for observation in observations:
            if isinstance(observation, EngineObservation):
                self._inside.save(observation)
        if self._store is None:
            return
        for observation in observations:
            if not isinstance(observation, PageObservation):
                continue
            if observation.layout is not None and observation.values is not None:
                self._store.save_scrape(
                    observation.layout, observation.values, timestamp=observation.timestamp, target=self.target
                )
        sampled = self._sampler.sample([o for o in observations if not isinstance(o, LogObservation)])
        if sampled is not None:
            layout, values = sampled
            self._store.save_scrape(layout, values, timestamp=now, target=self.target, source="probes")


def _told(now: float, alert: Alert) -> Event:
    fires = alert.state is AlertState.FIRING
    why = alert.metadata.get("resolved_because", "")
    message = f"alert {alert.name}: {alert.message}" if fires else f"alert {alert.name} is over: {why}"
    return Event(
        timestamp=now,
        event_type="alert_firing" if fires else "alert_resolved",
        message=message,
        severity=alert.severity if fires else Severity.INFO,
        target=alert.target,
        data={"alert_id": alert.alert_id, "name": alert.name, "intervention": alert.intervention},
    )


def _came_back(target: str, now: float, observed: Observed) -> Event:
    meanwhile = "; ".join(observed.meanwhile) or "nothing is known of that time"
    return Event(
        timestamp=now,
        event_type="watch_resumed",
        message=f"nobody watched it for {observed.away_seconds:.0f} s: {meanwhile}",
        target=target,
        data={"away_seconds": observed.away_seconds, "meanwhile": list(observed.meanwhile)},
    )


def _change(target: str, now: float, before: Condition, after: Condition, reason: str) -> Event:
    if after in _LOUD:
        severity = Severity.CRITICAL
    elif after in _QUIET:
        severity = Severity.INFO
    else:
        severity = Severity.WARNING
    return Event(
        timestamp=now,
        event_type="condition_changed",
        message=f"{before} became {after}: {reason}",
        severity=severity,
        target=target,
        data={"before": before, "after": after, "reason": reason},
    )
