"""Questions about checkpoints and events, answered from the database and from what is not committed yet."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.pending import Batch
from vllm_monitor.persistence.rare_rows import RareKind, Row, Wanted
from vllm_monitor.persistence.text_column import to_text_column

__all__ = ["count_records", "read_records"]

_LOG = logging.getLogger(__name__)
Record = TypeVar("Record")


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

    Equal times come in reverse order of arrival.
    """
    target_text = None if target is None else to_text_column(target)
    rows: dict[str, Row] = {}
    if connection is not None:
        query = _query(kind, wanted, start, end, target_text).limit(limit)
        for stored in reversed(connection.execute(query).mappings().all()):
            row = {str(name): value for name, value in stored.items()}
            rows[row[kind.id_field]] = row
    for item in memory.rare:
        if item.kind.table == kind.table and kind.matches(item.row, wanted, start, end, target_text):
            rows[item.row[kind.id_field]] = item.row
    newest = list(rows.values())
    newest.reverse()  # before sorting, which keeps the order of equal times
    newest.sort(key=lambda row: row["timestamp"], reverse=True)
    records: list[Record] = []
    damaged = 0
    for row in newest[:limit]:
        try:
            records.append(kind.from_row(row))
        except (StoreDamagedError, TypeError) as error:
            damaged += 1
            _LOG.warning("a row of %s was skipped: %s", kind.table, error)
    return records, damaged


def _query(kind: RareKind[Any], wanted: Wanted, start: float | None, end: float | None, target: str | None) -> Any:
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


def count_records(connection: Connection, table_name: str) -> int:
    """The number of rows of a table."""
    return int(connection.execute(select(func.count()).select_from(schema.metadata.tables[table_name])).scalar_one())
