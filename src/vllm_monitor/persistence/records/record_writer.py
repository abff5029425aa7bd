"""Writing records inside the transaction of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.documents.own_items import OwnItem, OwnItemError
from vllm_monitor.persistence.pending import RareItem
from vllm_monitor.persistence.records.rare_rows import RareKind, Row

__all__ = ["write_records"]


def write_records(connection: Connection, items: Iterable[RareItem]) -> None:
    """Insert records in order; the same id again replaces it, so writing again after a doubt is harmless.

    Neighbours that only replace (request summaries above all, which come by the thousand) become one statement;
    whatever is made out of the stored row is written alone.

    Raises:
        OwnItemError: When the file of a document or model cannot be written.
    """
    kind: RareKind[Any] | None = None
    rows: dict[str, Row] = {}
    for item in items:
        if kind is not None and (item.kind is not kind or not _only_replaces(item)):
            _replace_all(connection, kind, rows)
            kind, rows = None, {}
        if _only_replaces(item):
            kind = item.kind
            rows[item.row[kind.id_field]] = item.row  # the last of an id counts
        elif isinstance(item, OwnItem):
            try:
                item.write(connection)
            except OSError as error:
                raise OwnItemError(item, error) from error
        else:
            _change(connection, item)
    if kind is not None:
        _replace_all(connection, kind, rows)


def _only_replaces(item: RareItem) -> bool:
    return item.change is None and not isinstance(item, OwnItem)


def _replace_all(connection: Connection, kind: RareKind[Any], rows: dict[str, Row]) -> None:
    table = schema.metadata.tables[kind.table]
    columns = [name for name in (*kind.columns, "checksum") if name != kind.id_field]
    upsert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    upsert = upsert.on_conflict_do_update(
        index_elements=[kind.id_field], set_={name: upsert.excluded[name] for name in columns}
    )
    connection.execute(upsert, list(rows.values()))


def _change(connection: Connection, item: RareItem) -> None:
    table = schema.metadata.tables[item.kind.table]
    id_column = table.c[item.kind.id_field]
    found = connection.execute(select(table).where(id_column == item.row[item.kind.id_field])).mappings().first()
    if found is None:
        connection.execute(insert(table), item.resolve(None))
    else:
        stored = {str(name): value for name, value in found.items()}
        number = stored.pop("id")
        connection.execute(table.update().where(table.c.id == number), item.resolve(stored))
