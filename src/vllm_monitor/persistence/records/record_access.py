"""What the verbs of every kind of record have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection

from vllm_monitor.errors import RecordNotFoundError, StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence.codecs.arguments import checked_filter, checked_limit, checked_text, checked_time
from vllm_monitor.persistence.pending import Batch, RareItem
from vllm_monitor.persistence.records.progress import FORWARD_ONLY, is_further_along
from vllm_monitor.persistence.records.rare_rows import RareKind, Row, Wanted
from vllm_monitor.persistence.records.record_reader import find_row, read_records
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.store_access import StoreAccess

__all__ = ["RecordAccess", "is_intact"]

Record = TypeVar("Record")
_LOG = logging.getLogger(__name__)


class RecordAccess(StoreAccess):
    """Saving, changing and finding records of any kind; the verbs of each kind stand on it."""

    # -- saving -------------------------------------------------------------------------------------------------

    def _save(self, kind: RareKind[Record], record: Record) -> str:
        return self._save_item(self._item(kind, record))

    async def _save_async(self, kind: RareKind[Record], record: Record) -> str:
        return await self._save_item_async(self._item(kind, record))

    def _enqueue(self, kind: RareKind[Record], record: Record) -> str:
        return self._queue(self._item(kind, record, on_unknown=self._shown)).record_id

    def _item(self, kind: RareKind[Record], record: Record, on_unknown: Callable[[Any], str] | None = None) -> RareItem:
        row = kind.to_row(record, on_unknown, compress=self.config.compression_enabled)
        change = _forward(kind, row) if kind.table in FORWARD_ONLY else None
        return RareItem(kind, kind.value_of(row, kind.id_field), row, change)

    def _save_item(self, item: RareItem) -> str:
        self._refuse_when_closed()
        self._queue(item)
        durable = False
        with suppress(TimeoutError):  # not durable yet: that is the answer
            durable = item.first_attempt.result(self.config.durable_timeout_seconds)
        return self._checked(item, durable=durable)

    async def _save_item_async(self, item: RareItem) -> str:
        self._refuse_when_closed()
        self._queue(item)
        waiting = asyncio.shield(asyncio.wrap_future(item.first_attempt))
        durable = False
        with suppress(TimeoutError):  # not durable yet: that is the answer
            durable = await asyncio.wait_for(waiting, self.config.durable_timeout_seconds)
        return self._checked(item, durable=durable)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed", hint="Save before close(), or open it again.")

    def _queue(self, item: RareItem) -> RareItem:
        if self._closed:
            _LOG.warning("a record of %s came after the store was closed, and is lost", item.kind.table)
            self._pending.count_drop("closed")
            item.report(durable=False)
            return item
        self._wake_if_dormant()
        self._pending.add_rare(item)
        self._writer.wake(urgent=item.kind.is_rare)
        return item

    def _checked(self, item: RareItem, *, durable: bool) -> str:
        if not durable and self.config.required:
            error = self._writer.state.error
            raise StoreUnavailableError(
                f"a record of {item.kind.table} is not durable",
                hint=error.hint if error is not None else "The store does not answer in time; check its disk.",
            )
        return item.record_id

    def _shown(self, value: Any) -> str:
        with self._counter_lock:
            self._replaced_values += 1
        try:
            return repr(value)
        except Exception as error:  # a foreign __repr__ may raise anything; the type is shown
            return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"

    # -- changing -----------------------------------------------------------------------------------------------

    def _change_of(self, kind: RareKind[Any], record_id: str, edit: Callable[[Row], Row]) -> RareItem:
        """A change of a record that is there, made on the row as it stands when it is written.

        Should the row be gone or damaged by then, it is made on the row as it was seen here.

        Raises:
            RecordNotFoundError: When there is no such record.
            StoreDamagedError: When it does not match its checksum.
            StoreUnavailableError: When the store cannot be read, so that nobody can say.
        """
        record_id = checked_text(record_id, kind.id_field)
        seen = self._row(kind, record_id)
        kind.verify(seen)

        def change(stored: Row | None) -> Row:
            return edit(stored if stored is not None and is_intact(kind, stored) else seen)

        return RareItem(kind, record_id, edit(seen), change)

    def _row(self, kind: RareKind[Any], record_id: str) -> Row:
        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> Row:
            row = find_row(kind, record_id, memory, connection)
            if row is not None:
                return row
            if connection is None:
                raise StoreUnavailableError(
                    f"{kind.table} cannot be searched for {record_id!r}",
                    hint="The store cannot be read now; health() says why. Try again when it can.",
                )
            raise RecordNotFoundError(
                f"{kind.table} has no {kind.id_field} {record_id!r}",
                hint=f"Save the record before it is changed, and use the {kind.id_field} that saving returned.",
            )

        return self._look(ask)

    # -- asking -------------------------------------------------------------------------------------------------

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
        only = checked_filter(target, "target")
        first, last = checked_time(start, "start_time"), checked_time(end, "end_time")

        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> list[Record]:
            records, damaged = read_records(
                kind, memory, connection, wanted=wanted, start=first, end=last, target=only, limit=most
            )
            self._count_damage(damaged)
            return records

        return self._look(ask)


def _forward(kind: RareKind[Any], row: Row) -> Callable[[Row | None], Row]:
    """What is stored stays when it is further along than what is saved: a late or repeated intent, say."""

    def change(stored: Row | None) -> Row:
        if stored is None or not is_further_along(kind, stored, row) or not is_intact(kind, stored):
            return row
        return {name: stored[name] for name in row}

    return change


def is_intact(kind: RareKind[Any], row: Row) -> bool:
    """Whether a stored row matches its checksum."""
    try:
        kind.verify(row)
    except StoreDamagedError:
        return False
    return True
