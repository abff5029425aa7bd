"""Saving checkpoints and events and asking for them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.pending import Batch, RareItem
from vllm_monitor.persistence.rare_kinds import CHECKPOINTS, EVENTS
from vllm_monitor.persistence.rare_rows import RareKind, Wanted
from vllm_monitor.persistence.record_reader import read_records
from vllm_monitor.persistence.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.store_access import StoreAccess, checked_limit
from vllm_monitor.records import Event, LifecycleState, StateCheckpoint

__all__ = ["RecordVerbs"]

Record = TypeVar("Record")


class RecordVerbs(StoreAccess):
    """The verbs for rare records; part of ``PersistenceManager``."""

    def save_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Save a checkpoint; durable when the call returns, and its id is returned.

        Arguments and environment are redacted. The call waits at most ``durable_timeout_seconds``, and not
        longer than the first attempt to write takes; a record that is not durable then stays in memory, is
        retried, and counts in :meth:`health`.

        Raises:
            ValueNotStorableError: When something in it could not be given back unchanged.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        return self._save(CHECKPOINTS, checkpoint)

    def save_event(self, event: Event) -> str:
        """Save an event; otherwise as :meth:`save_checkpoint`."""
        return self._save(EVENTS, event)

    async def save_checkpoint_async(self, checkpoint: StateCheckpoint) -> str:
        """As :meth:`save_checkpoint`, without blocking the loop."""
        return await self._save_async(CHECKPOINTS, checkpoint)

    async def save_event_async(self, event: Event) -> str:
        """As :meth:`save_event`, without blocking the loop."""
        return await self._save_async(EVENTS, event)

    def enqueue_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Queue a checkpoint and return its id at once; records are committed in order of arrival.

        Unlike :meth:`save_checkpoint`, an object that cannot be stored does not raise: its ``repr`` is
        stored in its place and counted in :meth:`health`.
        """
        return self._enqueue(CHECKPOINTS, checkpoint)

    def enqueue_event(self, event: Event) -> str:
        """Queue an event; otherwise as :meth:`enqueue_checkpoint`."""
        return self._enqueue(EVENTS, event)

    def is_durable(self, record_id: str) -> bool:
        """Whether a record that this manager was given is committed.

        Positive knowledge only: ``False`` also for a record that was dropped, or that lies more than ten
        thousand records back.
        """
        return self._pending.is_durable(record_id)

    def get_checkpoints(
        self,
        state: LifecycleState | str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[StateCheckpoint]:
        """The newest checkpoints that pass the filters, newest first; times are inclusive."""
        return self._records(CHECKPOINTS, CHECKPOINTS.wanted(state=state), start_time, end_time, limit, target)

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

    def _save(self, kind: RareKind[Record], record: Record) -> str:
        item = self._queue(kind, kind.to_row(record))
        durable = False
        with suppress(TimeoutError):  # not durable yet: that is the answer
            durable = item.first_attempt.result(self.config.durable_timeout_seconds)
        return self._checked(item, durable=durable)

    async def _save_async(self, kind: RareKind[Record], record: Record) -> str:
        row = kind.to_row(record)
        if self._synchronous:
            item = self._queue(kind, row)
            return self._checked(item, durable=item.first_attempt.result())
        item = self._queue(kind, row)
        waiting = asyncio.shield(asyncio.wrap_future(item.first_attempt))
        durable = False
        with suppress(TimeoutError):  # not durable yet: that is the answer
            durable = await asyncio.wait_for(waiting, self.config.durable_timeout_seconds)
        return self._checked(item, durable=durable)

    def _enqueue(self, kind: RareKind[Record], record: Record) -> str:
        return self._queue(kind, kind.to_row(record, on_unknown=self._shown)).record_id

    def _queue(self, kind: RareKind[Any], row: dict[str, Any]) -> RareItem:
        item = RareItem(kind, row[kind.id_field], row)
        if self._closed:
            self._pending.count_drop("closed")
            item.report(durable=False)
            return item
        self._wake_if_dormant()
        self._pending.add_rare(item)
        self._writer.wake(urgent=True)
        return item

    def _checked(self, item: RareItem, *, durable: bool) -> str:
        if not durable and self.config.required:
            error = self._writer.state.error
            raise StoreUnavailableError(
                f"a record of {item.kind.table} is not durable",
                hint=error.hint if error is not None else "The store does not answer in time; check its disk.",
            )
        return item.record_id

    def _records(
        self,
        kind: RareKind[Record],
        wanted: Wanted,
        start: float | None,
        end: float | None,
        limit: int | None,
        target: str | None,
    ) -> list[Record]:
        most = checked_limit(limit)

        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> list[Record]:
            records, damaged = read_records(
                kind, memory, connection, wanted=wanted, start=start, end=end, target=target, limit=most
            )
            self._count_damage(damaged)
            return records

        return self._look(ask)

    def _shown(self, value: Any) -> str:
        with self._counter_lock:
            self._replaced_values += 1
        try:
            return repr(value)
        except Exception as error:  # a foreign __repr__ may raise anything; the type is shown
            return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
