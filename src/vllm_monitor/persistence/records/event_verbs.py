"""Saving events and asking for them."""

from __future__ import annotations

from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.rare_kinds import EVENTS
from vllm_monitor.persistence.records.record_access import RecordAccess
from vllm_monitor.records import Event

__all__ = ["EventVerbs"]


class EventVerbs(RecordAccess):
    """The verbs for events; part of ``PersistenceManager``."""

    def save_event(self, event: Event) -> str:
        """Save an event; otherwise as :meth:`save_checkpoint`."""
        return self._save(EVENTS, event)

    async def save_event_async(self, event: Event) -> str:
        """As :meth:`save_event`, without blocking the loop."""
        return await self._save_async(EVENTS, event)

    def enqueue_event(self, event: Event) -> str:
        """Queue an event; otherwise as :meth:`enqueue_checkpoint`."""
        return self._enqueue(EVENTS, event)

    def get_events(
        self,
        event_type: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[Event]:
        """The newest events that pass the filters, newest first; times are inclusive."""
        return self._records(EVENTS, EVENTS.wanted(event_type=event_type), start_time, end_time, limit, target)

    get_events_async = in_thread(get_events)
