"""Questions about records, answered from the database and from what is not committed yet, as one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Select, func, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.pending import Batch, RareItem
from vllm_monitor.persistence.records.rare_rows import RareKind, Row, Wanted

__all__ = ["PendingRow", "count_records", "count_with_pending", "find_row", "pending_rows", "read_records"]

_LOG = logging.getLogger(__name__)
_IDS_PER_QUERY = 500
Record = TypeVar("Record")


class PendingRow(NamedTuple):
    """A row as it will be once everything pending is committed.

    Args:
        row: The row.
        stored_number: The ``id`` of the row that it replaces; ``None`` when it is new.
        arrival: Its place among what is pending.
    """

    row: Row
    stored_number: int | None
    arrival: int

    @property
    def order(self) -> tuple[int, int]:
        """Its place among rows of equal time: that of the row it replaces, or after all of them."""
        return (0, self.stored_number) if self.stored_number is not None else (1, self.arrival)


def pending_rows(kind: RareKind[Any], memory: Batch, connection: Connection | None) -> dict[str, PendingRow]:
    """Id (as in its column) to the row that the pending items of that id lead to."""
    chains: dict[str, list[RareItem]] = {}
    for item in memory.rare:
        if item.kind.table == kind.table:
            chains.setdefault(item.row[kind.id_field], []).append(item)
    stored = {} if connection is None else _stored_rows(kind, connection, chains)
    rows: dict[str, PendingRow] = {}
    for arrival, (record_id, items) in enumerate(chains.items()):
        row = stored.get(record_id)
        number = None if row is None else int(row.pop("id"))
        for item in items:
            row = item.resolve(row)
        rows[record_id] = PendingRow(row or items[-1].row, number, arrival)
    return rows


def find_row(kind: RareKind[Any], record_id: str, memory: Batch, connection: Connection | None) -> Row | None:
    """The row of an id as it will be once everything pending is committed; ``None`` when there is none."""
    column = to_text_column(str(record_id))
    mine = Batch(rare=[item for item in memory.rare if item.row.get(kind.id_field) == column])
    found = pending_rows(kind, mine, connection).get(column)
    if found is not None or connection is None:
        return None if found is None else found.row
    row = _stored_rows(kind, connection, [column]).get(column)
    if row is not None:
        del row["id"]
    return row


def read_records(
    kind: RareKind[Record],
    memory: Batch,
    connection: Connection | None,
    *,
    wanted: Wanted,
    start: float | None,
    end: float | None,
    target: str | None,
    limit: int | None,
) -> tuple[list[Record], int]:
    """The newest records that pass the filters, newest first, and the number of damaged rows skipped.

    Equal times come in reverse order of arrival. What is pending hides the stored row of the same id, whether it
    passes the filters itself or not.
    """
    target_text = None if target is None else to_text_column(target)
    pending = pending_rows(kind, memory, connection)
    found = [
        (one.row["timestamp"], one.order, one.row)
        for one in pending.values()
        if kind.matches(one.row, wanted, start, end, target_text)
    ]
    if connection is not None:
        query = _query(kind, wanted, start, end, target_text)
        stored = _not_hidden(kind, connection, query, pending, limit)
        found.extend((row["timestamp"], (0, row["id"]), row) for row in stored)
    found.sort(key=lambda one: one[:2], reverse=True)
    records: list[Record] = []
    damaged = 0
    for _, _, row in found[:limit]:
        try:
            records.append(kind.from_row(row))
        except (StoreDamagedError, TypeError, ValueError) as error:
            damaged += 1
            _LOG.warning("a row of %s was skipped: %s", kind.table, error)
    return records, damaged


def _not_hidden(
    kind: RareKind[Any],
    connection: Connection,
    query: Select[Any],
    pending: dict[str, PendingRow],
    limit: int | None,
) -> Iterator[Row]:
    """The first rows of a query that nothing pending replaces."""
    if limit is not None:
        query = query.limit(limit + sum(one.stored_number is not None for one in pending.values()))
    taken = 0
    for stored in connection.execute(query).mappings():
        if taken == limit:
            return
        if stored[kind.id_field] not in pending:
            taken += 1
            yield {str(name): value for name, value in stored.items()}


def _stored_rows(kind: RareKind[Any], connection: Connection, ids: Collection[str]) -> dict[str, Row]:
    table = schema.metadata.tables[kind.table]
    id_column = table.c[kind.id_field]
    wanted = list(ids)
    rows: dict[str, Row] = {}
    for start in range(0, len(wanted), _IDS_PER_QUERY):
        query = select(table).where(id_column.in_(wanted[start : start + _IDS_PER_QUERY]))
        for stored in connection.execute(query).mappings():
            rows[stored[kind.id_field]] = {str(name): value for name, value in stored.items()}
    return rows


def _query(
    kind: RareKind[Any], wanted: Wanted, start: float | None, end: float | None, target: str | None
) -> Select[Any]:
    table = schema.metadata.tables[kind.table]
    query = select(table)
    for name, value in wanted.items():
        if value is not None:
            query = query.where(table.c[name] == value)
    if start is not None:
        query = query.where(table.c.timestamp >= start)
    if end is not None:
        query = query.where(table.c.timestamp <= end)
    if target is not None:
        query = query.where(table.c.target == target)
    return query.order_by(table.c.timestamp.desc(), table.c.id.desc())


def count_with_pending(kind: RareKind[Any], memory: Batch, connection: Connection | None) -> int:
    """The number of records of a kind; one that is stored and saved again counts once."""
    new = sum(one.stored_number is None for one in pending_rows(kind, memory, connection).values())
    return new + (0 if connection is None else count_records(connection, kind.table))


def count_records(connection: Connection, table_name: str) -> int:
    """The number of rows of a table."""
    return int(connection.execute(select(func.count()).select_from(schema.metadata.tables[table_name])).scalar_one())
