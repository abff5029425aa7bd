"""Which file holds which table of the index, and the lines of its rows.

==========================  =======================================================================================
file                        table
==========================  =======================================================================================
``samples.jsonl``           ``metrics``: the samples that were saved here; and what the store itself is
``imported.jsonl``          ``blocks``: samples that first arrived in other stores
``rollups.jsonl``           ``rollups``
``happy_paths.json``        ``happy_paths``: a document, written as a whole
``TABLE.jsonl``             any other table of records, a row to the line; a later line of an id replaces an earlier
==========================  =======================================================================================

Documents (guardrails, plugins, strategies) and the arrays of models are files of their own, as in the HYBRID backend.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table, select

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.json_backend.json_lines import LINES_FILE, encode_line
from vllm_monitor.persistence.json_backend.json_samples import Names, SampleLines
from vllm_monitor.persistence.json_backend.json_values import fields_of
from vllm_monitor.persistence.samples.block_rows import BlockRow, RollupRow
from vllm_monitor.persistence.samples.sample_rows import MetricsRow

__all__ = ["FORMAT", "RECORD_TABLES", "SAMPLE_TABLES", "TableLines", "file_of", "happy_paths_document", "key_of"]

FORMAT = 1
"""Version of the lines; a newer one is refused."""

SAMPLE_TABLES = ("metrics", "blocks", "rollups")
_ELSEWHERE = {
    *SAMPLE_TABLES, "store_meta", "targets", "streams", "series", "layouts", "stream_layouts", "stream_series",
    "origins", "documents", "happy_paths",
}  # fmt: skip
RECORD_TABLES = tuple(name for name in schema.metadata.tables if name not in _ELSEWHERE)
"""Tables whose rows are lines as they stand."""

_ROWS_PER_QUERY = 500


def file_of(table: str) -> str:
    """The name of the file with the lines of a table."""
    return {"metrics": LINES_FILE, "blocks": "imported.jsonl"}.get(table, f"{table}.jsonl")


def key_of(table: Table) -> list[str]:
    """The columns that name a row across stores."""
    for index in table.indexes:
        if index.unique:
            return [column.name for column in index.columns]
    return [column.name for column in table.columns if column.unique]


class TableLines:
    """Makes lines of rows. Make a new one when what it has read is rolled back.

    Args:
        names: What numbers of the index stand for.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._samples = {name: SampleLines(names) for name in SAMPLE_TABLES}

    def all_lines(self, connection: Connection, table_name: str) -> Iterator[bytes]:
        """The lines of a file that begins anew: of all rows. Raises as :meth:`lines`."""
        if table_name in self._samples:
            self._samples[table_name] = SampleLines(self._names)
        return self.lines(connection, table_name)

    def lines(self, connection: Connection, table_name: str, ids: Sequence[int] | None = None) -> Iterator[bytes]:
        """The lines of rows by ascending id; of all rows when ``ids`` is ``None``.

        Raises:
            StoreDamagedError: When a row cannot be read.
        """
        table = schema.metadata.tables[table_name]
        for rows in _pages(connection, table, ids):
            if table is schema.metrics:
                yield from self._samples[table_name].of_rows(connection, [MetricsRow(**row) for row in rows])
                continue
            for row in rows:
                if table is schema.blocks:
                    yield from self._samples[table_name].of_block(connection, BlockRow(**row))
                elif table is schema.rollups:
                    yield from self._samples[table_name].of_rollup(connection, RollupRow(**row))
                else:
                    yield self._record(connection, table, row)

    def _record(self, connection: Connection, table: Table, row: Any) -> bytes:
        fields = fields_of(table, row)
        if "origin_id" in fields:
            fields = {"origin": self._names.origin(connection, fields.pop("origin_id")), **fields}
        return encode_line(fields)


def happy_paths_document(connection: Connection) -> bytes:
    """The document with all happy paths, in order of their first saving."""
    table = schema.happy_paths
    entries = {}
    rows: Iterable[Any] = connection.execute(select(table).order_by(table.c.id)).mappings()
    for row in rows:
        fields = fields_of(table, row)
        entries[fields.pop("path_id")] = fields
    document = {"version": FORMAT, "entries": entries}
    try:
        return json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"


def _pages(connection: Connection, table: Table, ids: Sequence[int] | None) -> Iterator[Sequence[Any]]:
    if ids is not None:
        wanted = sorted(ids)
        for start in range(0, len(wanted), _ROWS_PER_QUERY):
            numbers = wanted[start : start + _ROWS_PER_QUERY]
            yield connection.execute(select(table).where(table.c.id.in_(numbers)).order_by(table.c.id)).mappings().all()
        return
    last = None
    while True:
        query: Select[Any] = select(table).order_by(table.c.id).limit(_ROWS_PER_QUERY)
        rows = connection.execute(query if last is None else query.where(table.c.id > last)).mappings().all()
        if not rows:
            return
        yield rows
        last = rows[-1]["id"]
