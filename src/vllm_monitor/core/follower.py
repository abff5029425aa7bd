"""Shows what another process stores of a target, while that one holds the lease.

Pages come from the store and go through the same picture, so figures and rates are the same; state and condition
are those that the leader stored, because it alone sees processes and health.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vllm_monitor.clock import Clock
from vllm_monitor.core.pipeline import Tick
from vllm_monitor.lifecycle_tracker import condition_since
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import StoredPages, TargetPicture
from vllm_monitor.records import Condition, LifecycleState

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
        self._pages = StoredPages(store, target)
        self._newest_ms = round((clock.now() - 60.0) * 1000)
        self._events_from = clock.now()

    def look(self) -> None:
        """Read what is new and show it."""
        now = self._clock.now()
        for page in self._pages.after(self._newest_ms):
            self._newest_ms = round(page.timestamp * 1000)
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
                condition_since=condition_since(last[0]),
            )
        self._on_tick(Tick(snapshot, tuple(fresh)))
