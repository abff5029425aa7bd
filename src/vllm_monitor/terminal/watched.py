"""Everything the view has been told: histories, events and the store."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.plugin_system import Panel
from vllm_monitor.records import Event, FailurePrediction
from vllm_monitor.terminal.conditions import CALM, urgency
from vllm_monitor.terminal.history import TargetHistory
from vllm_monitor.terminal.store_line import StoreLine

__all__ = ["Watched"]

_EVENTS_KEPT = 200
# A target that nobody speaks of any more has been removed; shorter silences are ticks that came late.
_FORGET_AFTER_SECONDS = 60.0


class Watched:
    """The state behind the screen. Bounded memory; not thread-safe (the view holds a lock)."""

    def __init__(self) -> None:
        self.histories: dict[str, TargetHistory] = {}
        self.store = StoreLine()
        self.panels: tuple[Panel, ...] = ()
        self.predictions: tuple[FailurePrediction, ...] = ()
        self.first_timestamp: float | None = None
        self.last_timestamp: float | None = None
        self._events: deque[Event] = deque(maxlen=_EVENTS_KEPT)

    def take(
        self,
        snapshots: Sequence[Snapshot],
        events: Sequence[Event],
        store: StoreLine,
        panels: Sequence[Panel] = (),
        predictions: Sequence[FailurePrediction] = (),
    ) -> list[Event]:
        """Take one tick. Events that are already known are not taken twice; the new ones are the answer."""
        self.store = store
        self.panels = tuple(panels)
        self.predictions = tuple(predictions)
        if snapshots:
            now = max(snapshot.timestamp for snapshot in snapshots)
            for snapshot in snapshots:
                history = self.histories.get(snapshot.target)
                if history is None:
                    history = self.histories[snapshot.target] = TargetHistory(snapshot)
                history.observe(snapshot)
                history.mentioned_at = now
            self._advance(now)
        fresh = []
        for event in events:
            if event not in self._events:
                self._events.append(event)
                fresh.append(event)
        return fresh

    @property
    def duration_seconds(self) -> float:
        """From the first tick to the last."""
        if self.first_timestamp is None or self.last_timestamp is None:
            return 0.0
        return max(0.0, self.last_timestamp - self.first_timestamp)

    def lag_seconds(self, history: TargetHistory) -> float:
        """How much older the picture of a target is than the newest one of any target."""
        return max(0.0, (self.last_timestamp or 0.0) - history.snapshot.timestamp)

    @property
    def most_urgent_first(self) -> list[TargetHistory]:
        """Histories by :data:`~vllm_monitor.terminal.conditions.URGENCY_ORDER`.

        Among equals the trouble that began first comes first; where all is well the name decides, so that
        rows keep their places.
        """
        return sorted(self.histories.values(), key=_place)

    @property
    def condition_counts(self) -> list[tuple[int, str]]:
        """Number of targets per condition, most urgent first, as pairs of number and condition value."""
        counts = Counter(history.snapshot.condition for history in self.histories.values())
        return [(counts[condition], condition.value) for condition in sorted(counts, key=urgency)]

    def events_of(self, target: str | None) -> list[Event]:
        """Events of one target and of the monitor itself, or of all (``None``), newest first."""
        chosen = [event for event in self._events if target is None or event.target in {"", target}]
        return sorted(chosen, key=lambda event: event.timestamp)[::-1]

    def predictions_of(self, target: str | None) -> list[FailurePrediction]:
        """Open predictions of one target, or of all (``None``), the most likely first."""
        chosen = [one for one in self.predictions if target in (None, one.target)]
        return sorted(chosen, key=lambda one: -one.probability)

    def total(self, name: str) -> float | None:
        """The sum of a canonical value over the targets that know it; ``None`` when none does."""
        values = [history.snapshot.values.get(name) for history in self.histories.values()]
        known = [value for value in values if value is not None and not math.isnan(value)]
        return sum(known) if known else None

    def _advance(self, now: float) -> None:
        if self.first_timestamp is None:
            self.first_timestamp = now
        self.last_timestamp = now
        gone = [
            target for target, history in self.histories.items() if now - history.mentioned_at > _FORGET_AFTER_SECONDS
        ]
        for target in gone:
            del self.histories[target]


def _place(history: TargetHistory) -> tuple[int, float, str]:
    snapshot = history.snapshot
    since = 0.0 if snapshot.condition in CALM else snapshot.condition_since
    return urgency(snapshot.condition), since, snapshot.target
