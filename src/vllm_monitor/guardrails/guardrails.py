"""``Guardrails``: which policies there are, and which alerts fire."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import cel

from vllm_monitor.errors import ConfigurationError, InvalidConditionError, StorageError
from vllm_monitor.guardrails.alert_track import AlertTrack, times_of
from vllm_monitor.guardrails.builtin import builtin_policies
from vllm_monitor.guardrails.condition import CompiledCondition
from vllm_monitor.records import Alert, AlertState, GuardrailPolicy, Severity

__all__ = ["GuardrailStore", "Guardrails", "Registered"]

_log = logging.getLogger(__name__)


class GuardrailStore(Protocol):
    """What guardrails need of the store."""

    def save_guardrails(self, guardrails: Iterable[GuardrailPolicy]) -> dict[str, int]:
        """Save policies; durable on return."""
        ...

    def load_guardrails(self) -> list[GuardrailPolicy]:
        """All stored policies."""
        ...

    def delete_guardrail(self, name: str) -> None:
        """Delete one."""
        ...

    def enqueue_alert(self, alert: Alert) -> str:
        """Hand an alert to the writer without waiting."""
        ...

    def get_alerts(
        self, *, state: AlertState | str | None = None, limit: int | None = 100, target: str | None = None
    ) -> list[Alert]:
        """Alerts, newest first."""
        ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A policy and what became of its condition.

    Args:
        policy: The policy.
        condition: Its condition, parsed; ``None`` when it cannot be.
        problem: Why not.
    """

    policy: GuardrailPolicy
    condition: CompiledCondition | None
    problem: str = ""

    @property
    def is_built_in(self) -> bool:
        """Whether it comes with the package."""
        return self.policy.metadata.get("built_in") is True


class Guardrails:
    """The policies of a monitor and their alerts. Thread-safe.

    Those that come with the package are there from the start; what is stored is added to them: policies of the
    operator's own, which may replace one of the package by its name, and which of the package's are disabled.

    Args:
        store: Where policies and alerts go and come from; ``None`` keeps nothing.
        built_in: The policies of the package.
        resume: Go on with the stored policies and the alerts that fire; a replay begins anew.
    """

    def __init__(
        self,
        store: GuardrailStore | None = None,
        *,
        built_in: Iterable[GuardrailPolicy] | None = None,
        resume: bool = True,
    ) -> None:
        self._store = store
        self._resumes = resume and store is not None
        self._lock = threading.RLock()
        self._registered: dict[str, Registered] = {}
        self._tracks: dict[str, dict[str, AlertTrack]] = {}
        for policy in builtin_policies() if built_in is None else built_in:
            self._registered[policy.name] = _registered(policy)
        self._shipped = dict(self._registered)
        if self._resumes:
            self.load()

    # -- policies -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Take in the stored policies again, for example after somebody edited them."""
        if self._store is None:
            return
        try:
            stored = {policy.name: policy for policy in self._store.load_guardrails()}
        except StorageError as error:  # what ships is better than no guardrails at all
            _log.error("the stored guardrails cannot be read: %s", error)
            return
        with self._lock:
            self._registered = dict(self._shipped)
            for name, policy in stored.items():
                self._registered[name] = self._taken(policy)
            self._follow_policies()

    def all(self) -> list[Registered]:
        """All policies, those of the package first."""
        with self._lock:
            return list(self._registered.values())

    def get(self, name: str) -> Registered:
        """One policy.

        Raises:
            ConfigurationError: When there is none of that name.
        """
        with self._lock:
            found = self._registered.get(name)
        if found is None:
            raise ConfigurationError(
                f"there is no guardrail {name!r}", hint="vllm-monitor guardrails list shows those that there are"
            )
        return found

    def register(self, policy: GuardrailPolicy, *, save: bool = True) -> Registered:
        """Add a policy, or replace the one of its name.

        Args:
            policy: The policy.
            save: Store it as well; durable on return.

        Raises:
            InvalidConditionError: When its condition cannot be understood.
            ConfigurationError: When it has no name, or an unknown severity.
        """
        registered = self.check(policy)
        with self._lock:
            self._registered[policy.name] = registered
            self._follow_policies()
        if save and self._store is not None:
            self._store.save_guardrails([policy])
        return registered

    def check(self, policy: GuardrailPolicy) -> Registered:
        """What a policy would be registered as.

        Raises:
            InvalidConditionError: When its condition cannot be understood.
            ConfigurationError: When it has no name, or an unknown severity.
        """
        if not isinstance(policy.name, str) or not policy.name.strip():
            raise ConfigurationError("a guardrail needs a name", hint="give it a short one in snake_case")
        if policy.severity not in set(Severity):
            raise ConfigurationError(
                f"guardrail {policy.name}: there is no severity {policy.severity!r}",
                hint=f"use one of {', '.join(Severity)}",
            )
        return Registered(policy, CompiledCondition(policy.condition))

    def enable(self, name: str, *, enabled: bool = True) -> Registered:
        """Switch a policy on or off; durable on return. An alert of it that fires is resolved with the next tick.

        Raises:
            ConfigurationError: When there is none of that name.
        """
        with self._lock:
            found = self.get(name)
            changed = replace(found, policy=replace(found.policy, enabled=enabled))
            self._registered[name] = changed
            self._follow_policies()
        if self._store is not None:
            self._store.save_guardrails([changed.policy])
        return changed

    def save(self) -> int:
        """Store every policy of the operator's own, and which of the package's are disabled; how many."""
        with self._lock:
            own = [one.policy for name, one in self._registered.items() if one.policy != self._shipped_policy(name)]
        if own and self._store is not None:
            self._store.save_guardrails(own)
        return len(own)

    def remove(self, name: str) -> None:
        """Delete a policy of the operator's own; one that it had replaced comes back.

        Raises:
            ConfigurationError: When there is none, or it comes with the package.
        """
        with self._lock:
            found = self.get(name)
            if found.is_built_in:
                raise ConfigurationError(
                    f"{name} comes with the package", hint=f"switch it off: vllm-monitor guardrails disable {name}"
                )
            if name in self._shipped:
                self._registered[name] = self._shipped[name]
            else:
                del self._registered[name]
            self._follow_policies()
        if self._store is not None:
            self._store.delete_guardrail(name)

    # -- alerts -------------------------------------------------------------------------------------------------

    def resume(self, target: str) -> None:
        """Go on with the stored alerts of a server that fire. Reads the store: not for an event loop."""
        with self._lock:
            self._tracks[target] = self._new_tracks(target)

    def evaluate(
        self,
        target: str,
        now: float,
        context: cel.Context,
        values: Mapping[str, float],
        *,
        checkpoint_id: str | None = None,
    ) -> tuple[Alert, ...]:
        """One tick of one server.

        Args:
            target: The server's URL.
            now: Unix seconds.
            context: What the conditions speak of, from ``make_context``.
            values: The canonical metrics in it.
            checkpoint_id: The newest checkpoint of the server.

        Returns:
            Alerts that began to fire or were resolved.
        """
        with self._lock:
            tracks = self._tracks.get(target)
            if tracks is None:
                tracks = self._tracks[target] = self._new_tracks(target)
            changed: list[Alert] = []
            explaining = {name for name, track in tracks.items() if track.alert is not None}
            for name, track in list(tracks.items()):
                registered = self._registered.get(name)
                if registered is None or registered.condition is None or not _applies(registered.policy, target):
                    alert = track.end(now, "the guardrail was switched off")
                    if alert is not None:
                        changed.append(alert)
                    continue
                is_met = registered.condition.evaluate(context)
                if not is_met and track.is_quiet:
                    continue
                alert = track.advance(
                    now,
                    is_met,
                    registered.condition.figures(values),
                    is_inhibited=not explaining.isdisjoint(_inhibitors(track.policy)),
                    checkpoint_id=checkpoint_id,
                )
                if alert is not None:
                    changed.append(alert)
                    if alert.state is AlertState.FIRING:
                        explaining.add(name)
            if self._store is not None:
                for alert in changed:
                    self._store.enqueue_alert(alert)
            return tuple(changed)

    def firing(self, target: str | None = None) -> list[Alert]:
        """The alerts that fire, oldest first."""
        with self._lock:
            targets = self._tracks if target is None else {target: self._tracks.get(target, {})}
            found = [track.alert for tracks in targets.values() for track in tracks.values()]
        return sorted((alert for alert in found if alert is not None), key=lambda alert: alert.timestamp)

    # -- inside -------------------------------------------------------------------------------------------------

    def _shipped_policy(self, name: str) -> GuardrailPolicy | None:
        shipped = self._shipped.get(name)
        return None if shipped is None else shipped.policy

    def _taken(self, stored: GuardrailPolicy) -> Registered:
        """A stored policy. Of the package's own only whether it is enabled counts: the rest is as it ships today."""
        shipped = self._shipped.get(stored.name)
        if shipped is not None and stored.metadata.get("built_in") is True:
            return replace(shipped, policy=replace(shipped.policy, enabled=stored.enabled))
        if stored.metadata.get("built_in") is True:
            stored = replace(stored, metadata={**stored.metadata, "built_in": False})  # no longer shipped
        found = _registered(stored)
        if found.problem:
            _log.warning("the stored guardrail %s is not evaluated: %s", stored.name, found.problem)
        return found

    def _follow_policies(self) -> None:
        """Tracks for the policies as they are now; alerts that fire go on, whatever else changed of their policy."""
        for target, tracks in self._tracks.items():
            for name, registered in self._registered.items():
                track = tracks.get(name)
                if track is None or track.policy != registered.policy:
                    fresh = _track(registered, target)
                    if track is not None and track.alert is not None:
                        fresh.restore(track.alert)
                    tracks[name] = fresh

    def _new_tracks(self, target: str) -> dict[str, AlertTrack]:
        tracks = {name: _track(registered, target) for name, registered in self._registered.items()}
        if self._resumes and self._store is not None:
            for alert in self._store.get_alerts(state=AlertState.FIRING, limit=None, target=target):
                track = tracks.get(alert.name)
                if track is None:  # its policy has gone: it is resolved with the next tick
                    policy = GuardrailPolicy(alert.name, alert.message, alert.condition, enabled=False)
                    track = tracks[alert.name] = AlertTrack(policy, target, times_of(policy, 0.0))
                if track.alert is None:
                    track.restore(alert)
        return tracks


def _registered(policy: GuardrailPolicy) -> Registered:
    try:
        return Registered(policy, CompiledCondition(policy.condition))
    except InvalidConditionError as error:
        return Registered(policy, None, str(error))


def _track(registered: Registered, target: str) -> AlertTrack:
    hold_seconds = registered.condition.hold_seconds if registered.condition is not None else 0.0
    return AlertTrack(registered.policy, target, times_of(registered.policy, hold_seconds))


def _applies(policy: GuardrailPolicy, target: str) -> bool:
    return policy.enabled and policy.target in ("", target)


def _inhibitors(policy: GuardrailPolicy) -> list[str]:
    names = policy.metadata.get("inhibited_by", ())
    return [str(name) for name in names] if isinstance(names, list | tuple) else []
