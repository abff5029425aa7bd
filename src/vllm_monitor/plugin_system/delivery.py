"""Where the answers of plugins go: the store, the guardrails, the screen."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from vllm_monitor.clock import Clock
from vllm_monitor.errors import InvalidConditionError
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.plugin_system.answers import (
    BadAnswerError,
    CustomSample,
    Panel,
    panel_of,
    policies_of,
    predictions_of,
    samples_of,
    strategy_of,
)
from vllm_monitor.plugin_system.catalogue import Candidate
from vllm_monitor.plugin_system.running import RunningPlugin
from vllm_monitor.records import (
    Event,
    FailurePrediction,
    GuardrailPolicy,
    MetricType,
    PluginKind,
    PluginRecord,
    PredictionOutcome,
    Severity,
    StrategyRecord,
    TargetView,
)

__all__ = ["OWN_METRICS", "Delivery", "PluginStore"]

Answer = TypeVar("Answer")
_OFF = "off_with_plugin"
"""In the metadata of a guardrail whose plugin is switched off: whether it was on before."""
_MOST_NEWS = 100
MOST_UNTAKEN = 100
"""Predictions of a server that wait for whoever settles them; later ones push out the oldest."""

MOST_SERIES = 10_000
"""Series that one plugin may make, as long as the monitor runs: each costs memory for as long as it is kept."""
OWN_METRICS = (
    "vllm_monitor_plugin_calls_total",
    "vllm_monitor_plugin_failures_total",
    "vllm_monitor_plugin_timeouts_total",
    "vllm_monitor_plugin_call_seconds_total",
)
"""What is stored of each plugin itself: calls, failures, those of them that took too long, and time in calls."""


class PluginStore(Protocol):
    """What plugins need of the store."""

    def save_plugins(self, plugins: Any, *, expected_revisions: Mapping[str, int] | None = None) -> dict[str, int]:
        """Save plugins; durable on return."""
        ...

    def load_plugins(self) -> dict[str, PluginRecord]:
        """All stored plugins."""
        ...

    def document_revisions(self, kind: str) -> dict[str, int]:
        """Name to revision."""
        ...

    def delete_plugin(self, name: str) -> None:
        """Delete one."""
        ...

    def save_strategies(self, strategies: Any) -> dict[str, int]:
        """Save strategies; fields that are left out stay."""
        ...

    def load_strategies(self) -> dict[str, StrategyRecord]:
        """All stored strategies."""
        ...

    def save_metric(
        self,
        metric_type: str | MetricType,
        metric_name: str,
        value: Any,
        tags: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timestamp: float | None = None,
        target: str = "",
    ) -> None:
        """Save one sample; queues only."""
        ...

    def save_prediction(self, prediction: FailurePrediction) -> str:
        """Save a prediction; durable on return."""
        ...

    def get_predictions(
        self, failure_type: str | None = None, *, limit: int | None = 100, target: str | None = None
    ) -> list[FailurePrediction]:
        """Predictions, newest first."""
        ...

    def enqueue_event(self, event: Event) -> str:
        """Hand an event to the writer without waiting."""
        ...


class Delivery:
    """Takes what plugins answer. Thread-safe.

    Args:
        store: Where samples, predictions and strategies go; ``None`` keeps nothing.
        guardrails: Where policies go; ``None`` takes none.
        clock: Where time comes from.
    """

    def __init__(self, store: PluginStore | None, guardrails: Guardrails | None, *, clock: Clock) -> None:
        self._store = store
        self._guardrails = guardrails
        self._clock = clock
        self._lock = threading.Lock()
        self._panels: dict[str, Panel] = {}
        self._open: dict[tuple[str, str, str], tuple[float, float | None]] = {}  # until when, how likely: not any more
        self._untaken: dict[str, deque[FailurePrediction]] = {}
        self._series: dict[str, set[int]] = {}
        self._news: deque[Event] = deque(maxlen=_MOST_NEWS)

    def panels(self) -> list[Panel]:
        """The newest panel of every plugin that has one, by the names of the plugins."""
        with self._lock:
            return [self._panels[name] for name in sorted(self._panels)]

    def take(self, plugin: Candidate, answer: Any, targets: Mapping[str, TargetView]) -> None:
        """What a turn has answered.

        Raises:
            BadAnswerError: When it is not what the kind must answer; nothing of it was taken then.
        """
        now = self._clock.now()
        if plugin.kind is PluginKind.COLLECTOR:
            samples = _understood(samples_of, answer, targets)
            self._count_series(plugin.name, samples)
            if self._store is not None:
                for one in samples:
                    where = one.target or plugin.target
                    self._store.save_metric(
                        MetricType.CUSTOM, one.name, one.value, one.labels, timestamp=now, target=where
                    )
        elif plugin.kind is PluginKind.DETECTOR:
            made_by = f"{plugin.name} {plugin.version}".strip()
            for prediction in _understood(predictions_of, answer, targets, now=now, made_by=made_by):
                self._predict(plugin.name, prediction)
        elif plugin.kind is PluginKind.PANEL:
            panel = _understood(panel_of, answer, plugin.name)
            with self._lock:
                self._panels[plugin.name] = panel

    def begin(self, plugin: Candidate, answer: Any, *, trial: bool = False) -> None:
        """What a guardrail or strategy plugin answered when it was loaded.

        Args:
            plugin: Whose it is.
            answer: The answer.
            trial: Only check it.

        Raises:
            BadAnswerError: When it is not what the kind must answer; nothing of it was taken then.
        """
        if plugin.kind is PluginKind.GUARDRAIL:
            self._provide(plugin, _understood(policies_of, answer, plugin.name), trial=trial)
        elif plugin.kind is PluginKind.STRATEGY:
            strategy = _understood(strategy_of, answer, plugin.name, version=plugin.version)
            if self._store is not None and not trial:
                said = {"description": strategy.description, "metadata": strategy.metadata}
                known = self._store.load_strategies().get(strategy.name)
                if known is None or (known.description, known.metadata) != (strategy.description, strategy.metadata):
                    self._store.save_strategies({strategy.name: said})

    def silence(self, name: str) -> None:
        """A person has switched a plugin off: so are its guardrails, until it is on again."""
        self.forget(name)
        for policy in self._policies_of(name):
            if _OFF not in policy.metadata and self._guardrails is not None:
                metadata = {**policy.metadata, _OFF: policy.enabled}
                self._guardrails.register(replace(policy, enabled=False, metadata=metadata))

    def withdraw(self, name: str) -> None:
        """A plugin was removed: so are its guardrails; what is stored of its samples and predictions stays."""
        self.forget(name)
        for policy in self._policies_of(name):
            if self._guardrails is not None:
                self._guardrails.remove(policy.name)

    def forget(self, name: str) -> None:
        """A plugin does not run at the moment: nothing of it is shown."""
        with self._lock:
            self._panels.pop(name, None)

    def open_predictions(self, target: str, now: float) -> dict[str, float]:
        """Failure type to the probability of what is predicted of a server."""
        with self._lock:
            return {
                failure_type: probability
                for (_, of, failure_type), (until, probability) in self._open.items()
                if of == target and now < until and probability is not None
            }

    def take_predictions(self, target: str) -> list[FailurePrediction]:
        """What was predicted of a server since this was last asked, oldest first; it is stored already."""
        with self._lock:
            return list(self._untaken.pop(target, ()))

    def note_resolved(self, prediction: FailurePrediction) -> None:
        """It is known what became of a prediction; its plugin makes no new one before its horizon has ended.

        Otherwise one that warns with every turn would make one with every turn as soon as they are settled at once.
        """
        plugin = prediction.metadata.get("plugin")
        if isinstance(plugin, str):
            key = (plugin, prediction.target, prediction.failure_type)
            until = prediction.timestamp + prediction.horizon_seconds
            with self._lock:
                if self._open.get(key, (until, None))[0] <= until:
                    self._open[key] = (until, None)

    def take_events(self) -> list[Event]:
        """What was told since this was last asked, for the screen."""
        with self._lock:
            news, self._news = list(self._news), deque(maxlen=_MOST_NEWS)
        return news

    def tell(self, event_type: str, message: str, severity: Severity = Severity.INFO, **data: Any) -> None:
        """Keep an event."""
        now = self._clock.now()
        event = Event(timestamp=now, event_type=event_type, message=message, severity=severity, data=data)
        with self._lock:
            self._news.append(event)
        if self._store is not None:
            self._store.enqueue_event(event)

    def keep_figures(self, plugins: Mapping[str, RunningPlugin]) -> None:
        """Store how much each of these has been called, how often it failed, and what that took."""
        if self._store is None:
            return
        now = self._clock.now()
        for name, one in plugins.items():
            figures = (float(one.calls), float(one.failures), float(one.timeouts), one.call_seconds)
            for metric, value in zip(OWN_METRICS, figures, strict=True):
                self._store.save_metric(MetricType.MONITOR, metric, value, {"plugin": name}, timestamp=now)

    def _predict(self, plugin: str, prediction: FailurePrediction) -> None:
        """Keep a prediction, unless the plugin's last one of this server and failure is still open."""
        key = (plugin, prediction.target, prediction.failure_type)
        with self._lock:
            known = self._open.get(key)
        if known is None and self._store is not None:
            stored = self._store.get_predictions(prediction.failure_type, limit=20, target=prediction.target)
            mine = [one for one in stored if one.metadata.get("plugin") == plugin]
            last = max(mine, key=lambda one: one.timestamp + one.horizon_seconds, default=None)
            if last is not None:
                is_open = last.outcome is PredictionOutcome.OPEN
                known = (last.timestamp + last.horizon_seconds, last.probability if is_open else None)
        if known is not None and prediction.timestamp < known[0]:
            with self._lock:
                self._open.setdefault(key, known)
            return
        prediction = replace(prediction, metadata={"plugin": plugin})
        if self._store is not None:
            self._store.save_prediction(prediction)
        with self._lock:
            self._open[key] = (prediction.timestamp + prediction.horizon_seconds, prediction.probability)
            self._untaken.setdefault(prediction.target, deque(maxlen=MOST_UNTAKEN)).append(prediction)

    def _policies_of(self, plugin: str) -> list[GuardrailPolicy]:
        if self._guardrails is None:
            return []
        return [one.policy for one in self._guardrails.all() if one.policy.metadata.get("plugin") == plugin]

    def _count_series(self, plugin: str, samples: Iterable[CustomSample]) -> None:
        with self._lock:
            known = self._series.setdefault(plugin, set())
            known.update(hash((one.name, one.target, *sorted(one.labels.items()))) for one in samples)
            if len(known) > MOST_SERIES:
                self._series[plugin] = set()
                raise BadAnswerError(
                    f"it has made more than {MOST_SERIES} series: labels are not for what never repeats"
                )

    def _provide(self, plugin: Candidate, policies: Iterable[GuardrailPolicy], *, trial: bool) -> None:
        if self._guardrails is None:
            return
        known = {one.policy.name: one.policy for one in self._guardrails.all()}
        offered = {policy.name: replace(policy, target=plugin.target) for policy in policies}
        for name, policy in offered.items():
            found = known.get(name)
            if found is not None and found.metadata.get("plugin") != plugin.name:
                raise BadAnswerError(f"guardrails: there is a guardrail {name} already, and it is not of this plugin")
            try:
                self._guardrails.check(policy)
            except InvalidConditionError as error:
                raise BadAnswerError(f"guardrails: {name}: {error}") from None
        if trial:
            return
        for name, policy in offered.items():
            found = known.get(name)
            wanted = replace(policy, enabled=found.metadata.get(_OFF, found.enabled)) if found is not None else policy
            if found != wanted:
                self._guardrails.register(wanted)
        for policy in self._policies_of(plugin.name):
            if policy.name not in offered:
                self._guardrails.remove(policy.name)


def _understood(read: Callable[..., Answer], answer: Any, *arguments: Any, **named: Any) -> Answer:
    """What an answer says, whatever is wrong with it."""
    try:
        return read(answer, *arguments, **named)
    except BadAnswerError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise BadAnswerError(f"its answer makes no sense: {error!r}") from None
