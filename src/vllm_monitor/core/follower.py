"""Shows what another process stores of a target, while that one holds the lease.

Pages come from the store and go through the same picture, so figures and rates are the same; state and condition
are those that the leader stored, because it alone sees processes and health.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace

from vllm_monitor.clock import Clock
from vllm_monitor.core.pipeline import Tick
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import TargetPicture
from vllm_monitor.records import Condition, Layout, LifecycleState, PageObservation, Series

__all__ = ["TargetFollower"]


_AT_WORK = frozenset({Condition.OK, Condition.IDLE})


class TargetFollower:
    """Follows one target through the store.

    Belongs to one owner.

    Args:
        target: The server's URL.
        store: Where the leader's samples and checkpoints are.
        clock: Where time comes from.
        on_tick: Called after each look.
    """

    def __init__(
        self, target: str, store: PersistenceManager, *, clock: Clock, on_tick: Callable[[Tick], None]
    ) -> None:
        self.url = target
        self._store = store
        self._clock = clock
        self._on_tick = on_tick
        self._picture = TargetPicture(target)
        self._newest_at = clock.now() - 60.0
        self._events_from = clock.now()
        self._last_layout: Layout | None = None

    def look(self) -> None:
        """Read what is new and show it."""
        now = self._clock.now()
        for page in self._new_pages():
            self._picture.observe(page)
        self._picture.judge(now)
        self._picture.take_events()
        events = self._store.get_events(start_time=self._events_from, target=self.url)
        fresh = [event for event in reversed(events) if event.timestamp > self._events_from]
        if fresh:
            self._events_from = fresh[-1].timestamp
        last = self._store.get_checkpoints(limit=1, target=self.url)
        snapshot = self._picture.snapshot(now, last[0].state if last else LifecycleState.NOT_STARTED)
        by_whom = "(by the process that watches this target)"
        if last and {last[0].condition, snapshot.condition} <= _AT_WORK:  # the leader stores no pause at work
            snapshot = replace(snapshot, reason=f"{snapshot.reason} {by_whom}")
        elif last:
            snapshot = replace(
                snapshot,
                condition=last[0].condition or Condition.UNKNOWN,
                reason=f"{last[0].reason} {by_whom}",
                condition_since=last[0].timestamp,
            )
        self._on_tick(Tick(snapshot, tuple(fresh)))

    def _new_pages(self) -> list[PageObservation]:
        """The pages that the leader has stored since the last look, put together again from their series."""
        times = self._store.scrape_times(self.url, self._newest_at).get("metrics")
        wanted = [] if times is None else [at for at in times.tolist() if at > self._newest_at * 1000]
        if not wanted:
            return []
        self._newest_at = wanted[-1] / 1000
        pages: dict[int, tuple[list[Series], array[float]]] = {at: ([], array("d")) for at in wanted}
        for stored in self._store.query_range(None, target=self.url, start_time=wanted[0] / 1000):
            for at, value in zip(stored.timestamps_ms.tolist(), stored.values.tolist(), strict=True):
                if at in pages:
                    pages[at][0].append(stored.series)
                    pages[at][1].append(value)
        return [
            PageObservation(
                target=self.url, timestamp=at / 1000, layout=self._layout(series), values=values, status=200
            )
            for at, (series, values) in pages.items()
        ]

    def _layout(self, series: list[Series]) -> Layout:
        """The same object as before when the series are the same, so that what is derived from it is kept."""
        layout = Layout(series)
        if self._last_layout is None or layout != self._last_layout:
            self._last_layout = layout
        return self._last_layout
