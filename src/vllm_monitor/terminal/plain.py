"""Lines for pipes, files and dumb terminals: changes when they happen, a summary now and then."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.records import Condition, Event, Severity
from vllm_monitor.terminal import format as human
from vllm_monitor.terminal.conditions import condition_label
from vllm_monitor.terminal.history import TargetHistory
from vllm_monitor.terminal.safe_text import Script
from vllm_monitor.terminal.watched import Watched

__all__ = ["PlainLines"]

_SUMMARY_EVERY_SECONDS = 10.0
_TOLD_EVENTS = frozenset({"failure_predicted", "prediction_resolved", "failure_over", "alert_resolved"})
"""Also when there is nothing to worry about in them."""
_TOLD_OTHERWISE = frozenset({"condition_changed"})


class PlainLines:
    """Prints what changed. Not thread-safe.

    Args:
        console: Where to print.
        script: What its encoding can say.
        store_description: Where the store is.
    """

    def __init__(self, console: Console, script: Script, store_description: str) -> None:
        self._console = console
        self._script = script
        self._store_description = store_description
        self._conditions: dict[str, Condition] = {}
        self._store_healthy = True
        self._summarised_at: float | None = None

    def tell(self, watched: Watched, events: Sequence[Event] = ()) -> None:
        """Print one line for each target whose condition changed and each event that matters, and the summary.

        Args:
            watched: All that is known.
            events: What has happened since this was last called.
        """
        for history in watched.most_urgent_first:
            self._tell_condition(history.snapshot)
        for event in events:
            if event.event_type in _TOLD_EVENTS or _alarms(event):
                where = f"{event.target} " if event.target else ""
                self._print(event.timestamp, f"{where}{event.severity.value}: {event.message}")
        now = watched.last_timestamp
        if watched.store.healthy is not self._store_healthy:
            self._store_healthy = watched.store.healthy
            words = "STORE OK again" if self._store_healthy else "STORE NOT HEALTHY"
            self._print(now, f"{words} {watched.store.message}")
        if now is None:
            return
        if self._summarised_at is None:
            self._summarised_at = now
        elif not 0 <= now - self._summarised_at < _SUMMARY_EVERY_SECONDS:  # a clock set back starts anew
            self._summarised_at = now
            self._print(now, self._summary(watched))

    def _tell_condition(self, snapshot: Snapshot) -> None:
        before = self._conditions.get(snapshot.target)
        if before is snapshot.condition:
            return
        self._conditions[snapshot.target] = snapshot.condition
        was = f" (was {condition_label(before)})" if before else ""
        words = f"{snapshot.target} {condition_label(snapshot.condition)}{was}: {snapshot.reason}"
        self._print(snapshot.timestamp, words)

    def _summary(self, watched: Watched) -> str:
        histories = watched.most_urgent_first
        store = watched.store
        parts = [_one_target(histories[0]) if len(histories) == 1 else _many_targets(watched)]
        for name, write, unit in (
            ("generation_tokens_per_second", human.rate, "tokens/s"),
            ("requests_running", human.count, "running"),
            ("requests_waiting", human.count, "waiting"),
        ):
            parts.append(f"{write(watched.total(name))} {unit}")
        if store.keeping:
            stored = f"{human.count(store.stored_samples)} samples ({human.byte_count(store.bytes_on_disk)})"
            parts += [f"stored {stored}", f"dropped {human.count(store.dropped)}"]
        if not store.healthy:
            parts.append("STORE NOT HEALTHY")
        return "summary " + ", ".join(parts)

    def _print(self, timestamp: float | None, words: str) -> None:
        text = self._script.clean(f"{human.iso_time(timestamp)} {words}")
        self._console.print(Text(text), soft_wrap=True)


def _one_target(history: TargetHistory) -> str:
    snapshot = history.snapshot
    lasted = human.duration(max(0.0, snapshot.timestamp - snapshot.condition_since))
    return f"{snapshot.target} {snapshot.condition.value.replace('_', ' ')} for {lasted}"


def _many_targets(watched: Watched) -> str:
    counts = " ".join(f"{number} {name.replace('_', ' ')}" for number, name in watched.condition_counts)
    return f"{len(watched.histories)} targets: {counts}"


def _alarms(event: Event) -> bool:
    return event.severity is not Severity.INFO and event.event_type not in _TOLD_OTHERWISE
