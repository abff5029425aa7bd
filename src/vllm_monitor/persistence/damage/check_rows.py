"""Every row of a table, verified, and the name of each that is damaged."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.codecs.text_column import from_text_column
from vllm_monitor.persistence.damage.damaged_table import DamagedTable, LostRow
from vllm_monitor.persistence.damage.stored_rows import decode_payload, verify_row
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.persistence.samples.hot_rows import HotRowChecker
from vllm_monitor.persistence.sqlite_file import Fault, fault_of

__all__ = ["DamagedItem", "RowChecker"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAMING: dict[str, tuple[str, ...]] = {
    "store_meta": ("key",),
    "targets": ("target",),
    "streams": ("target_id", "source"),
    "origins": ("store_id",),
    "series": ("fingerprint",),
    "layouts": ("fingerprint",),
    "metrics": ("stream_id", "start_ms"),
    "blocks": ("stream_id", "start_ms", "end_ms"),
    "rollups": ("stream_id", "step_seconds", "start_ms", "end_ms"),
    "prediction_scores": ("origin_id", "day", "target", "failure_type", "outcome", "calibration_bin"),
    "documents": ("kind", "name"),
    "models": ("model_name", "version"),
    **{kind.table: (kind.id_field,) for kind in ALL_KINDS},
}
"""The columns that say to a person which row is meant; an index of the table begins with them."""


class DamagedItem(NamedTuple):
    """A damaged row: which one, and what is wrong."""

    name: str
    problem: str


class RowChecker:
    """Checks table after table of one file.

    Args:
        connection: Reads the file.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._columns: dict[int, int | None] = {}
        self._hot = HotRowChecker(self._columns_of)
        self._streams: dict[int, str] = {}

    def count(self, table: str) -> int:
        """The number of rows that should be there, where anything can say."""
        return DamagedTable(self._connection, table, ()).count()

    def check(self, table: str) -> Iterator[DamagedItem | None]:
        """For each row that is or should be there ``None``, or what is damaged; the caller holds a transaction."""
        rows = DamagedTable(self._connection, table, _NAMING[table])
        for found in rows.rows():
            if isinstance(found, LostRow):
                yield DamagedItem(self._name(table, found.rowid, rows.name_of(found.rowid), None), found.problem)
                continue
            rowid, row = found
            try:
                self._verify(table, row)
            except StoreDamagedError as error:
                yield DamagedItem(self._name(table, rowid, rows.name_of(rowid), row), error.message)
            else:
                yield None
        for index in rows.broken_indexes:
            yield DamagedItem(index, "the index cannot be read")

    def _verify(self, table: str, row: dict[str, Any]) -> None:
        if table == "metrics":
            self._hot.check(row)
            return
        verify_row(table, row)
        if table in ("blocks", "rollups"):
            columns = decode_payload(table, row)
            if columns is not None and columns != self._columns_of(row["layout_id"]):
                raise StoreDamagedError(f"its layout {row['layout_id']} is damaged or missing", hint="It is skipped.")

    def _columns_of(self, layout_id: int) -> int | None:
        if layout_id not in self._columns:
            self._columns[layout_id] = self._read_columns(layout_id)
        return self._columns[layout_id]

    def _read_columns(self, layout_id: int) -> int | None:
        row = self._one("SELECT id, fingerprint, series_ids FROM layouts WHERE id = ?", layout_id)
        if row is None:
            return None
        try:
            verify_row("layouts", row)
        except StoreDamagedError:
            return None
        return len(json.loads(row["series_ids"]))

    def _name(self, table: str, rowid: int, known: tuple[Any, ...] | None, row: Mapping[str, Any] | None) -> str:
        if known is None:
            known = () if row is None else tuple(row.get(column) for column in _NAMING[table])
        named = dict(zip(_NAMING[table], known, strict=False))
        if not named:
            return f"row {rowid}"
        if "stream_id" in named:
            times = [named[column] for column in ("start_ms", "end_ms") if column in named]
            step = f" in steps of {named['step_seconds']} s" if "step_seconds" in named else ""
            return f"{rowid}: {self._stream_name(named['stream_id'])}{step}, {' to '.join(map(_shown_time, times))}"
        return " ".join(str(value) for value in named.values())

    def _stream_name(self, stream_id: Any) -> str:
        if stream_id not in self._streams:
            query = "SELECT target, source FROM streams JOIN targets ON targets.id = target_id WHERE streams.id = ?"
            row = self._one(query, stream_id)
            name = f"stream {stream_id}"
            if row is not None:
                target, source = (_shown_text(row[column]) for column in ("target", "source"))
                name = f"{target or 'no target'} {source or 'single samples'}"
            self._streams[stream_id] = name
        return self._streams[stream_id]

    def _one(self, query: str, number: Any) -> dict[str, Any] | None:
        try:
            cursor = self._connection.execute(query, (number,))
            row = cursor.fetchone()
        except sqlite3.DatabaseError as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            return None
        return None if row is None else dict(zip((column[0] for column in cursor.description), row, strict=True))


def _shown_time(time_ms: Any) -> str:
    try:
        return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (TypeError, OverflowError):
        return str(time_ms)


def _shown_text(column: Any) -> str:
    try:
        return from_text_column(column)
    except (StoreDamagedError, AttributeError):
        return str(column)
