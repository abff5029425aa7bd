"""A whole store that is filled, row by row, with what was rescued from a damaged one."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.damage.stored_rows import StoredRow
from vllm_monitor.persistence.records.progress import is_further_along
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.persistence.samples.block_rows import BlockKind
from vllm_monitor.persistence.samples.scrape_codec import KEYFRAME, LOOSE
from vllm_monitor.persistence.sql_store import OWN_ORIGIN
from vllm_monitor.persistence.sqlite_file import make_engine

__all__ = ["LOST_SOURCE", "LOST_TARGET", "RescuedStore"]

LOST_TARGET = "salvaged-stream-"
"""What the target of samples is called, with the number of their stream, when its name is lost."""
LOST_SOURCE = "unknown"
"""Likewise their source."""

_KINDS = {kind.table: kind for kind in ALL_KINDS}
# Two rows of one number that differ: one is an old one, and nothing says which. Samples of neither are believed.
_NAMES = frozenset({"series", "layouts", "targets", "streams", "origins"})
_NATURAL_KEYS: dict[str, tuple[str, ...]] = {
    "store_meta": ("key",),
    "prediction_scores": ("origin_id", "day", "target", "failure_type", "outcome", "calibration_bin"),
    "documents": ("kind", "name"),
    "models": ("model_id",),
    **{kind.table: (kind.id_field,) for kind in ALL_KINDS},
}
_NEWER: dict[str, Callable[[StoredRow, StoredRow], bool]] = {
    "metrics": lambda found, stored: bool(found["kind"] == KEYFRAME != stored["kind"]),
    "prediction_scores": lambda found, stored: bool(found["predictions"] > stored["predictions"]),
    "documents": lambda found, stored: bool(found["revision"] > stored["revision"]),
}


class RescuedStore:
    """A store of what was rescued: the same tables, and the same numbers where they still mean something.

    Args:
        path: Its file, made anew.
        config: Settings.
    """

    def __init__(self, path: Path, config: PersistenceConfig) -> None:
        self.path = path
        self.found: dict[str, int] = {}
        self._ambiguous: dict[str, set[int]] = {}
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        engine = make_engine(path, config)
        schema.metadata.create_all(engine)
        engine.dispose()
        self._connection = sqlite3.connect(path, isolation_level=None)
        # It is made again from the start after an interruption, so it need not survive one.
        self._connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
        self._connection.execute("BEGIN")

    def add(self, table: str, row: StoredRow) -> None:
        """Add a verified row; of two that exclude each other the one that is further along stays.

        Raises:
            sqlite3.Error: When the disk is full, say.
        """
        if self._insert(table, row):
            self.found[table] = self.found.get(table, 0) + 1
            return
        number = row.get("id")
        stored = self._stored(table, ("id",), row) if number is not None else None
        if table in _NAMES:
            if stored is not None and stored != dict(row):
                self._ambiguous.setdefault(table, set()).add(int(row["id"]))
            return
        if stored == dict(row):
            return
        if table == "metrics":
            if stored is not None and _NEWER[table](row, stored):
                self._replace(table, row, stored)
            return
        key = _NATURAL_KEYS.get(table)
        other = self._stored(table, key, row) if key else None
        if other is None:  # only the number is taken: an old row had it before
            if self._insert(table, {name: value for name, value in row.items() if name != "id"}):
                self.found[table] = self.found.get(table, 0) + 1
        elif self._is_newer(table, row, other):
            self._replace(table, row, other)

    def add_missing(self, table: str, row: StoredRow) -> None:
        """Add a row unless there is one of its number."""
        if self._insert(table, row):
            self.found[table] = self.found.get(table, 0) + 1

    def finish(self, fallback: str) -> str:
        """Take out what cannot be believed, name what lost its name, and close the file.

        Args:
            fallback: What names the store when its own id is lost, the same at every attempt.

        Returns:
            The id of the store that was damaged.
        """
        for table, numbers in self._ambiguous.items():
            self._connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(n,) for n in numbers])  # noqa: S608  # ours
            self.found[table] -= len(numbers)
        store_id = self._store_id(fallback)
        self._name_origins(store_id)
        self._name_streams()
        self._connection.execute("COMMIT")
        self._connection.close()
        return store_id

    def abandon(self) -> None:
        """Close the file and remove it."""
        self._connection.close()
        self.path.unlink(missing_ok=True)

    def _store_id(self, fallback: str) -> str:
        for query in (
            "SELECT value FROM store_meta WHERE key = 'store_id'",
            f"SELECT store_id FROM origins WHERE id = {OWN_ORIGIN}",  # noqa: S608  # a number of ours
        ):
            row = self._connection.execute(query).fetchone()
            if row is not None:
                return str(row[0])
        return _derived_id(fallback)

    def _name_origins(self, store_id: str) -> None:
        insert = "INSERT OR IGNORE INTO origins (id, store_id) VALUES (?, ?)"
        self._connection.execute(insert, (OWN_ORIGIN, store_id))
        for table in ("blocks", "rollups", "prediction_scores"):
            query = f"SELECT DISTINCT origin_id FROM {table} WHERE origin_id NOT IN (SELECT id FROM origins)"  # noqa: S608  # ours
            for (number,) in self._connection.execute(query).fetchall():
                self._connection.execute(insert, (number, _derived_id(f"{store_id} {number}")))

    def _name_streams(self) -> None:
        """Samples whose target is lost are kept under a name that says so."""
        for table, loose in (("metrics", LOOSE), ("blocks", BlockKind.LOOSE), ("rollups", None)):
            kind = "0" if loose is None else f"max(kind) = {int(loose)}"
            query = (
                f"SELECT stream_id, {kind} FROM {table} WHERE stream_id NOT IN"  # noqa: S608  # names of our schema
                " (SELECT streams.id FROM streams JOIN targets ON targets.id = target_id) GROUP BY stream_id"
            )
            for number, is_loose in self._connection.execute(query).fetchall():
                cursor = self._connection.execute(
                    "INSERT OR IGNORE INTO targets (target) VALUES (?)", (f"{LOST_TARGET}{number}",)
                )
                self._connection.execute(
                    "INSERT OR REPLACE INTO streams (id, target_id, source) VALUES (?, ?, ?)",
                    (number, cursor.lastrowid, "" if is_loose else LOST_SOURCE),
                )

    def _insert(self, table: str, row: StoredRow) -> bool:
        names, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
        statement = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"  # noqa: S608  # names of our schema
        return self._connection.execute(statement, [*row.values()]).rowcount == 1

    def _replace(self, table: str, row: StoredRow, stored: StoredRow) -> None:
        new = {name: value for name, value in row.items() if name != "id"}
        assignments = ", ".join(f'"{name}" = ?' for name in new)
        statement = f"UPDATE OR IGNORE {table} SET {assignments} WHERE id = ?"  # noqa: S608  # likewise
        self._connection.execute(statement, [*new.values(), stored["id"]])

    def _stored(self, table: str, key: tuple[str, ...], row: StoredRow) -> dict[str, Any] | None:
        where = " AND ".join(f'"{name}" = ?' for name in key)
        cursor = self._connection.execute(
            f"SELECT * FROM {table} WHERE {where}",  # noqa: S608  # likewise
            [row[name] for name in key],
        )
        found = cursor.fetchone()
        return None if found is None else dict(zip((one[0] for one in cursor.description), found, strict=True))

    @staticmethod
    def _is_newer(table: str, row: StoredRow, stored: StoredRow) -> bool:
        kind = _KINDS.get(table)
        if kind is not None:
            return is_further_along(kind, row, stored)
        newer = _NEWER.get(table)
        return newer is not None and newer(row, stored)


def _derived_id(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
