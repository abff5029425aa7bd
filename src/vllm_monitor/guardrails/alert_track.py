"""One alert as a state machine: inactive, pending, firing, resolved, and inactive again.

As Prometheus' alerting rules with ``for`` and ``keep_firing_for``
(https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/), and two more rules: a condition that
cannot be decided changes nothing for a while, and after it was resolved an alert stays silent for its cooldown.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from vllm_monitor.records import Alert, AlertState, GuardrailPolicy, Severity

__all__ = ["AlertTimes", "AlertTrack", "times_of"]

UNDECIDED_SECONDS = 300.0
"""A firing alert whose condition cannot be decided for so long is resolved: there is nothing behind it any more."""
DEFAULT_KEEP_FIRING_SECONDS = 15.0
"""Figures that flap around a limit make one alert, not many."""
_SEVERITIES = {severity.value: severity for severity in Severity}


@dataclass(frozen=True, slots=True)
class AlertTimes:
    """Times of a policy, in seconds.

    Args:
        hold: How long its condition must be met before it fires.
        keep_firing: How long it goes on firing after that.
        cooldown: How long it stays silent after it was resolved.
    """

    hold: float = 0.0
    keep_firing: float = DEFAULT_KEEP_FIRING_SECONDS
    cooldown: float = 0.0


def times_of(policy: GuardrailPolicy, hold_seconds: float) -> AlertTimes:
    """The times that a policy's metadata say (``keep_firing_seconds``, ``cooldown_seconds``); bad ones are defaults."""

    def said(name: str, default: float) -> float:
        value = policy.metadata.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and 0 <= value < float("inf") else default

    keep, cooldown = said("keep_firing_seconds", DEFAULT_KEEP_FIRING_SECONDS), said("cooldown_seconds", 0.0)
    return AlertTimes(hold_seconds, keep, cooldown)


class AlertTrack:
    """The alert of one guardrail on one server. Not thread-safe: one owner.

    Args:
        policy: The guardrail.
        target: The server's URL.
        times: Its times.
    """

    __slots__ = ("_last_now", "_met_since", "_silent_until", "_undecided_since", "_unmet_since", "alert", "policy",
                 "target", "times")  # fmt: skip

    def __init__(self, policy: GuardrailPolicy, target: str, times: AlertTimes) -> None:
        self.policy = policy
        self.target = target
        self.times = times
        self.alert: Alert | None = None
        """The alert while it fires."""
        self._met_since: float | None = None
        self._unmet_since: float | None = None
        self._undecided_since: float | None = None
        self._silent_until = 0.0
        self._last_now = 0.0

    @property
    def state(self) -> AlertState:
        """Where it stands."""
        if self.alert is not None:
            return AlertState.FIRING
        return AlertState.INACTIVE if self._met_since is None else AlertState.PENDING

    @property
    def is_quiet(self) -> bool:
        """Nothing waits: a condition that is not met, or cannot be decided, changes nothing."""
        return self.alert is None and self._met_since is None

    def restore(self, alert: Alert) -> None:
        """Go on with an alert that was firing when it was last stored."""
        self.alert = alert
        self._met_since = alert.timestamp

    def advance(
        self,
        now: float,
        is_met: bool | None,
        values: dict[str, float],
        *,
        is_inhibited: bool = False,
        checkpoint_id: str | None = None,
    ) -> Alert | None:
        """Take in whether the condition is met.

        Args:
            now: Unix seconds. A step backwards begins all waiting anew.
            is_met: ``None`` when that cannot be said.
            values: The figures it speaks of.
            is_inhibited: Another alert explains this one, so it does not begin to fire.
            checkpoint_id: The newest checkpoint of the server.

        Returns:
            The alert when it begins to fire or is resolved.
        """
        if now < self._last_now:
            self._met_since = None if self._met_since is None else now
            self._unmet_since = self._undecided_since = None
            self._silent_until = min(self._silent_until, now + self.times.cooldown)
        self._last_now = now
        if is_met is None:
            return self._wait(now)
        self._undecided_since = None
        if not is_met:
            return self._clear(now, values)
        self._unmet_since = None
        if self._met_since is None:
            self._met_since = now
        if self.alert is not None or now - self._met_since < self.times.hold or is_inhibited:
            return None
        if now < self._silent_until:
            return None
        self.alert = Alert(
            timestamp=self._met_since,
            name=self.policy.name,
            state=AlertState.FIRING,
            severity=_SEVERITIES.get(self.policy.severity, Severity.WARNING),
            message=_message(self.policy, values),
            condition=self.policy.condition,
            values=values,
            fired_at=now,
            intervention=_name_of(self.policy.intervention),
            checkpoint_id=checkpoint_id,
            target=self.target,
            metadata={"runbook": self.policy.metadata["runbook"]} if "runbook" in self.policy.metadata else {},
            alert_id=uuid.uuid4().hex,
        )
        return self.alert

    def end(self, now: float, why: str) -> Alert | None:
        """Resolve it, whatever its condition says."""
        self._met_since = self._unmet_since = self._undecided_since = None
        if self.alert is None:
            return None
        resolved = replace(
            self.alert,
            state=AlertState.RESOLVED,
            resolved_at=now,
            metadata={**self.alert.metadata, "resolved_because": why},
        )
        self.alert = None
        self._silent_until = now + self.times.cooldown
        return resolved

    def _clear(self, now: float, values: dict[str, float]) -> Alert | None:
        if self.alert is None:
            self._met_since = None
            return None
        if self._unmet_since is None:
            self._unmet_since = now
        if now - self._unmet_since < self.times.keep_firing:
            return None
        figures = ", ".join(f"{name} {_number(value)}" for name, value in values.items())
        return self.end(now, f"the condition is no longer met{f' ({figures})' if figures else ''}")

    def _wait(self, now: float) -> Alert | None:
        if self._undecided_since is None:
            self._undecided_since = now
        if self.alert is not None and now - self._undecided_since >= UNDECIDED_SECONDS:
            return self.end(now, f"its figures have not been known for {UNDECIDED_SECONDS:.0f} s")
        return None


def _message(policy: GuardrailPolicy, values: dict[str, float]) -> str:
    figures = ", ".join(f"{name} {_number(value)}" for name, value in values.items())
    words = policy.description.rstrip(".") or policy.name
    return f"{words} ({figures})" if figures else words


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _name_of(intervention: object) -> str | None:
    """The name of an intervention, which may be a text, or a mapping with its name and parameters."""
    if isinstance(intervention, dict):
        intervention = intervention.get("name")
    return None if intervention is None else str(intervention)
