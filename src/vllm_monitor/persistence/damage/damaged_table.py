"""The rows of a table of an SQLite file, one after the other, also when pages of it are destroyed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_monitor.persistence.sqlite_file import Fault, fault_of

__all__ = ["DamagedTable", "LostRow"]

_WHOLE = "NOT INDEXED"


@dataclass(frozen=True, slots=True)
class LostRow:
    """A row that an index knows and the table cannot give.

    Args:
        rowid: Its number.
        problem: Why, in a few words.
    """

    rowid: int
    problem: str


class DamagedTable:
    """Reads a table in the order of its row numbers; what cannot be read is found through its indexes.

    One after the other is fast. Where that meets a destroyed page, the numbers of the rows that must follow are taken
    from the indexes, which lie on other pages, and each row is asked for alone. Everything happens within the
    transaction of the caller, so that what a live writer does meanwhile does not look like damage.

    Args:
        connection: Reads the file, in a transaction.
        table: Name of the table.
        naming: Columns that an index begins with and that say which row is meant.
    """

    def __init__(self, connection: sqlite3.Connection, table: str, naming: Sequence[str]) -> None:
        self.broken_indexes: list[str] = []
        self._connection = connection
        self._table = table
        self._naming = tuple(naming)
        self._names: dict[int, tuple[Any, ...]] | None = None

    def count(self) -> int:
        """The number of rows that should be there; 0 when nothing can say."""
        for index, _ in self._indexes():
            try:
                (number,) = self._connection.execute(
                    f'SELECT count(*) FROM "{self._table}" INDEXED BY "{index}"'  # noqa: S608  # names of the schema
                ).fetchone()
                return int(number)
            except sqlite3.DatabaseError as error:
                _only_damage(error)
        return 0

    def rows(self) -> Iterator[tuple[int, dict[str, Any]] | LostRow]:
        """Every row with its number, and every row that is lost.

        Raises:
            sqlite3.Error: For what is not damage (locks, permissions, a disk that fails).
        """
        last: int | None = None
        seen = 0
        while True:
            try:
                for rowid, row in self._following(last):
                    if last is not None and rowid <= last:
                        raise sqlite3.DatabaseError("rows are not in order")
                    last = rowid
                    seen += 1
                    yield rowid, row
                break
            except sqlite3.DatabaseError as error:
                _only_damage(error)
                found = self._next_alone(last)
                if found is None:
                    return
                last = found.rowid if isinstance(found, LostRow) else found[0]
                seen += 1
                yield found
        if seen < self.count():  # a page may have become one that looks empty
            yield from self._never_seen()

    def name_of(self, rowid: int) -> tuple[Any, ...] | None:
        """The naming columns of a row according to an index; ``None`` when no index can say."""
        return self._known().get(rowid) or None

    def names(self) -> dict[int, tuple[Any, ...]]:
        """Row numbers to naming columns, of every row that an index can name."""
        return {rowid: name for rowid, name in self._known().items() if name}

    def _following(self, last: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        after, values = ("", ()) if last is None else ("WHERE rowid > ?", (last,))
        cursor = self._connection.execute(
            f'SELECT rowid, * FROM "{self._table}" {_WHOLE} {after} ORDER BY rowid',  # noqa: S608  # likewise
            values,
        )
        names = [column[0] for column in cursor.description[1:]]
        for rowid, *columns in cursor:
            yield rowid, dict(zip(names, columns, strict=True))

    def _next_alone(self, last: int | None) -> tuple[int, dict[str, Any]] | LostRow | None:
        following = [rowid for rowid in self._known() if last is None or rowid > last]
        return self._alone(min(following)) if following else None

    def _alone(self, rowid: int) -> tuple[int, dict[str, Any]] | LostRow:
        try:
            cursor = self._connection.execute(
                f'SELECT * FROM "{self._table}" {_WHOLE} WHERE rowid = ?',  # noqa: S608  # likewise
                (rowid,),
            )
            columns = cursor.fetchone()
        except sqlite3.DatabaseError as error:
            _only_damage(error)
            return LostRow(rowid, f"its page cannot be read ({error})")
        if columns is None:
            return LostRow(rowid, "an index names it, but the table does not have it")
        names = [column[0] for column in cursor.description]
        return rowid, dict(zip(names, columns, strict=True))

    def _never_seen(self) -> Iterator[LostRow]:
        for rowid in sorted(self._known()):
            found = self._alone(rowid)
            if isinstance(found, LostRow):
                yield found

    def _known(self) -> dict[int, tuple[Any, ...]]:
        """Row numbers to naming columns (or nothing), from every index, read from both of its ends."""
        if self._names is None:
            self._names = {}
            for index, columns in self._indexes():
                names = columns[: len(self._naming)] == self._naming
                picked = ", ".join(f'"{column}"' for column in self._naming) if names else ""
                for direction in ("ASC", "DESC"):
                    if self._read_index(index, columns, picked, direction):
                        break
                else:
                    self.broken_indexes.append(index)
        return self._names

    def _read_index(self, index: str, columns: tuple[str, ...], picked: str, direction: str) -> bool:
        names = self._names if self._names is not None else {}
        order = ", ".join(f'"{column}" {direction}' for column in columns)
        wanted = f"rowid, {picked}" if picked else "rowid"
        query = f'SELECT {wanted} FROM "{self._table}" INDEXED BY "{index}" ORDER BY {order}'  # noqa: S608  # likewise
        try:
            for rowid, *name in self._connection.execute(query):
                if name or rowid not in names:
                    names[rowid] = tuple(name)
        except sqlite3.DatabaseError as error:
            _only_damage(error)
            return False
        return True

    def _indexes(self) -> list[tuple[str, tuple[str, ...]]]:
        try:
            names = [row[1] for row in self._connection.execute(f'PRAGMA index_list("{self._table}")')]
            return [
                (name, tuple(row[2] for row in self._connection.execute(f'PRAGMA index_info("{name}")')))
                for name in names
            ]
        except sqlite3.DatabaseError as error:
            _only_damage(error)
            return []


def _only_damage(error: sqlite3.DatabaseError) -> None:
    """Raise it again unless it says that the file is damaged."""
    if getattr(error, "sqlite_errorcode", None) is not None and fault_of(error) is not Fault.DAMAGED:
        raise error
