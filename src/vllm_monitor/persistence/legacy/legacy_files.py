"""Reading the files of the earlier design as what they are: strangers' files.

Nothing is written, nothing in them is run, and nothing is believed: tables are looked at, columns are asked for,
sizes are limited, links are not followed. Pickled models are never opened.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from vllm_monitor.errors import ArchiveError

__all__ = ["LegacyDatabase", "NotUnderstoodError", "read_json", "unpacked"]

LARGEST_JSON_FILE_BYTES = 64 << 20
LARGEST_VALUE_BYTES = 16 << 20
_ALLOWED = frozenset([sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ])
_HINT = "Give the storage folder of the earlier design, or a copy of it."


class NotUnderstoodError(Exception):
    """A value that cannot be understood; its text is counted in the report."""


class LegacyDatabase:
    """A database file of the earlier design, opened so that it cannot change and can do nothing.

    Args:
        path: The file. A write-ahead log or a journal beside it is left alone.

    Raises:
        ArchiveError: When it is no plain file, or no database.
    """

    def __init__(self, path: Path) -> None:
        _refuse_all_but_plain(path)
        self.path = path
        uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
        try:
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise ArchiveError(f"{path} cannot be opened: {error}", hint=_HINT) from error
        try:
            self._connection.text_factory = lambda data: data.decode("utf-8", "replace")
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE_BYTES)
            self._connection.execute("PRAGMA trusted_schema=OFF")
            self._connection.execute("PRAGMA query_only=ON")
            self.columns = self._columns_of_tables()
            self._connection.set_authorizer(_only_reading)
        except sqlite3.Error as error:
            self._connection.close()
            raise ArchiveError(f"{path} is no database that can be read: {error}", hint=_HINT) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    @property
    def is_legacy(self) -> bool:
        """Whether it has the earlier design's table of metrics, and is not one of our own."""
        return "alembic_version" not in self.columns and {"metric_type", "metric_name", "value"} <= set(
            self.columns.get("metrics", ())
        )

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        """The rows of a table, ascending by ``rowid``, which stands beside the columns; none when there is no table.

        Raises:
            sqlite3.Error: When the file is damaged from here on.
        """
        columns = self.columns.get(table)
        if columns is None:
            return
        listed = ", ".join(f'"{name}"' for name in columns)
        query = f'SELECT rowid, {listed} FROM "{table}" ORDER BY rowid'  # noqa: S608  # names that the file has itself, checked
        last = None
        for row in self._connection.execute(query):
            if last is not None and row[0] <= last:
                raise sqlite3.DatabaseError(f"the rows of {table} are not in order")
            last = row[0]
            yield {**dict(zip(columns, row[1:], strict=True)), "rowid": row[0]}

    def _columns_of_tables(self) -> dict[str, tuple[str, ...]]:
        """Plain tables and their columns; views and virtual tables, which could run code, are not among them."""
        found: dict[str, tuple[str, ...]] = {}
        for name, sql in self._connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            plain = isinstance(name, str) and name.isidentifier() and isinstance(sql, str)
            if not plain or "VIRTUAL" in sql[:40].upper() or "WITHOUT ROWID" in sql.upper():
                continue
            columns = self._connection.execute(f'PRAGMA table_info("{name}")').fetchall()
            found[name] = tuple(
                row[1] for row in columns if isinstance(row[1], str) and row[1].isidentifier() and row[1] != "rowid"
            )
        return {name: columns for name, columns in found.items() if columns}


def _only_reading(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _refuse_all_but_plain(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from error
    if not stat.S_ISREG(mode):
        raise ArchiveError(f"{path} is no plain file", hint=_HINT)


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        NotUnderstoodError: When it is a link, too large, or no JSON.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotUnderstoodError(f"{path.name} is no plain file")
            data = file.read(LARGEST_JSON_FILE_BYTES + 1)
    except OSError as error:
        raise NotUnderstoodError(f"{path.name} cannot be read") from error
    if len(data) > LARGEST_JSON_FILE_BYTES:
        raise NotUnderstoodError(f"{path.name} is too large")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotUnderstoodError(f"{path.name} is no JSON") from error


def unpacked(column: Any) -> Any:
    """The value of a column that holds JSON, or base64 of compressed JSON; ``None`` for an empty one.

    Raises:
        NotUnderstoodError: When it holds neither.
    """
    if column is None or column == "":
        return None
    if not isinstance(column, str):
        return column
    text = column
    with suppress(ValueError, zlib.error):
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(column, validate=True), LARGEST_VALUE_BYTES)
        if not inflater.eof:
            raise NotUnderstoodError("a value is cut off or too large")
        text = data.decode()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotUnderstoodError("a value is no JSON") from error
