"""The one place where the rooms meet: ``step`` turns observations into stored samples and a judged picture.

Deterministic given the observations and the times of the ticks, so that a recorded incident replays through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from vllm_monitor.collectors import ProbeSampler, ServerFacts
from vllm_monitor.guardrails import Guardrails, make_context
from vllm_monitor.lifecycle_tracker import Facts, LifecycleTracker, Observed
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import Snapshot, TargetPicture
from vllm_monitor.records import (
    FAILURE_TYPES,
    Alert,
    AlertState,
    Condition,
    Event,
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


@dataclass(frozen=True, slots=True)
class Tick:
    """What one step found.

    Args:
        snapshot: The picture after the step.
        events: What happened since the step before, oldest first.
        checkpoints: A checkpoint for each change of state or condition, oldest first.
        alerts: Alerts that began to fire or were resolved.
        firing: Alerts that fire after it, oldest first.
    """

    snapshot: Snapshot
    events: tuple[Event, ...]
    checkpoints: tuple[StateCheckpoint, ...] = ()
    alerts: tuple[Alert, ...] = ()
    firing: tuple[Alert, ...] = ()


class TargetPipeline:
    """Takes the observations of one target through store, picture and lifecycle.

    Not thread-safe: one owner.

    Args:
        target: The server's URL, or the name of a recording.
        tracker: Follows the lifecycle; may be shared by many targets of one owner.
        guardrails: Conditions that must not be met; may be shared likewise. ``None`` raises no alerts.
        store: Where samples, checkpoints and events go; ``None`` keeps nothing.
        labels: The operator's labels of the target, for conditions.
        predictions: Gives, for a server and a time, failure type to the probability of its open prediction.
    """

    def __init__(
        self,
        target: str,
        *,
        tracker: LifecycleTracker,
        guardrails: Guardrails | None = None,
        store: PersistenceManager | None = None,
        labels: Mapping[str, str] | None = None,
        predictions: Callable[[str, float], Mapping[str, float]] | None = None,
    ) -> None:
        self.target = target
        self.picture = TargetPicture(target)
        self._tracker = tracker
        self._guardrails = guardrails
        self._labels = dict(labels or {})
        self._predictions = predictions
        self._store = store
        self._sampler = ProbeSampler()
        self._condition: Condition | None = None
        self._own_events: list[Event] = []

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
        observed = self._tracker.observe(self.target, now, self.picture.life(), values, guardrails=firing)
        events = self._own_events + self.picture.take_events()
        if observed.away_seconds is not None:
            events.append(_came_back(self.target, now, observed))
        self._own_events = []
        if judgement.condition is not self._condition:
            if self._condition is not None:
                events.append(_change(self.target, now, self._condition, judgement.condition, judgement.reason))
            self._condition = judgement.condition
        snapshot = self.picture.snapshot(now, observed.state, values)
        alerts = self._evaluate(now, snapshot, observed)
        events += [_told(now, alert) for alert in alerts]
        if self._store is not None:
            for event in events:
                self._store.enqueue_event(event)
        still = () if self._guardrails is None else tuple(self._guardrails.firing(self.target))
        return Tick(snapshot, tuple(events), observed.checkpoints, alerts, still)

    def _evaluate(self, now: float, snapshot: Snapshot, observed: Observed) -> tuple[Alert, ...]:
        if self._guardrails is None:
            return ()
        life = asdict(self._tracker.figures(self.target, now))
        facts = {
            **life,
            "state_seconds": max(0.0, now - life.pop("state_since")),
            "labels": self._labels,
            "host_pressed": self.picture.is_host_pressed,
        }
        if self._predictions is not None:
            facts["predictions"] = {**dict.fromkeys(FAILURE_TYPES, 0.0), **self._predictions(self.target, now)}
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
