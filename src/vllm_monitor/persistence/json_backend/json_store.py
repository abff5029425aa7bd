"""The JSON backend: append-only lines are the store, a SQLite index of them answers the questions.

Every change of the index, whoever makes it, is noted by triggers in the same transaction, and reaches the lines before
it is committed: what is acknowledged is in the lines, and what is not committed is cut off them again. The index is
made anew from the lines whenever the store is opened, so its own fate does not matter.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import Connection, text

from vllm_monitor.clock import SystemClock
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.json_backend.json_files import LineFiles, OwnerLock
from vllm_monitor.persistence.json_backend.json_index import IndexBuilder
from vllm_monitor.persistence.json_backend.json_lines import encode_line
from vllm_monitor.persistence.json_backend.json_samples import Names
from vllm_monitor.persistence.json_backend.json_tables import (
    FORMAT,
    RECORD_TABLES,
    SAMPLE_TABLES,
    TableLines,
    file_of,
    happy_paths_document,
)
from vllm_monitor.persistence.private_file import write_whole
from vllm_monitor.persistence.sql_store import SqlStore

__all__ = ["JsonStore"]

_LOG = logging.getLogger(__name__)

_REWRITE_SECONDS = 3600.0
_SMALL_FILE_BYTES = 1 << 20
_ALWAYS_ANEW = ("blocks", "rollups", "happy_paths")
"""Tables in whose files a line that is left behind would count beside the one that came in its place."""
_LINE_TABLES = (*SAMPLE_TABLES, *RECORD_TABLES)
_NOTE = (
    "CREATE TRIGGER note_{event}_{table} AFTER {event} ON {table}"
    " BEGIN INSERT INTO unwritten VALUES ('{table}', {row}.id, {gone}); END"
)


class JsonStore(SqlStore):
    """An open store of the JSON backend. One process, and one store in it, may have a folder open.

    Lines are appended; a row that is deleted leaves its line behind until the file is written anew: at once when it is
    small, else within the hour or when the store is closed. Until then a crash brings such a row back, and retention
    deletes it again. Samples are not sealed: their lines are what is kept of them.

    Args:
        path: The index, ``index.db`` in the folder of the store.
        config: Settings.
        now: Unix seconds.

    Raises:
        StoreUnavailableError: When the store is open elsewhere.
        StoreTooNewError: When a newer version wrote it.
    """

    seals = False

    def __init__(self, path: Path, config: PersistenceConfig, now: float) -> None:
        # Power loss may take the index: it is made anew anyway.
        of_index = config.model_copy(update={"durability": "normal"})
        with ExitStack() as undo:
            self._lock = OwnerLock(config.storage_dir)
            undo.callback(self._lock.release)
            builder = IndexBuilder(of_index, path, now)
            builder.build()
            super().__init__(path, of_index, now)
            undo.callback(super().close)
            self._host_clock = SystemClock()
            self._happy_paths = config.storage_dir / config.happy_paths_file
            self._stale: set[str] = set(builder.damaged)
            self._rewrite_at = self._host_clock.monotonic() + _REWRITE_SECONDS
            self._files = LineFiles(config.storage_dir, durable=config.durability == "full")
            undo.callback(self._files.close)
            self._forget_names()
            self._note_changes()
            self._in_transaction(lambda connection: self._begin_lines(connection, is_new=builder.is_new))
            if builder.set_aside:
                self.quarantined = builder.set_aside[0]
            undo.pop_all()

    @classmethod
    def in_folder(cls, config: PersistenceConfig, now: float) -> JsonStore:
        """The store of ``config.storage_dir``; raises as the class does."""
        return cls(config.db_path, config, now)

    def is_current(self) -> bool:
        """Whether index and lines are still the files that were opened."""
        return super().is_current() and self._files.is_current()

    def commit(self) -> None:
        """Make what was written durable: in the lines first."""
        if self._writer.get_transaction() is not None:
            self._write_lines(self._writer)
        try:
            super().commit()
        except BaseException:
            self._files.undo()
            raise

    def rollback(self) -> None:
        """Forget what was written, and what was remembered of it."""
        self._forget_names()
        super().rollback()

    def after_bulk_change(self) -> None:
        """Bring what others changed in the index (an import, retention) into the lines. Any thread.

        Raises:
            OSError, sqlite3.Error, DBAPIError: When it could not be written; it is tried again at the next commit.
        """
        self._in_transaction(self._write_lines)

    def checkpoint_log(self) -> None:
        """As in ``SqlStore``; also writes the files anew that have many lines of deleted rows, once in an hour."""
        super().checkpoint_log()
        if self._host_clock.monotonic() >= self._rewrite_at:
            self._rewrite_at = self._host_clock.monotonic() + _REWRITE_SECONDS
            self._in_transaction(lambda connection: self._rewrite(connection, self._stale))

    def close(self) -> None:
        """Write what is left to be written, and let go of the folder."""
        with ExitStack() as steps:
            steps.callback(self._lock.release)
            steps.callback(self._files.close)
            steps.callback(super().close)
            try:
                self._in_transaction(self._write_all)
            except Exception:
                _LOG.exception("the lines of %s are not tidied up; nothing is lost by it", self.path.parent)

    def size_bytes(self) -> int:
        """The lines and the index."""
        names = [file_of(name) for name in _LINE_TABLES]
        lines = sum(self._files.size_bytes(name) for name in (*names, self._happy_paths.name))
        return super().size_bytes() + lines

    def _note_changes(self) -> None:
        with self._writer.begin():
            self._writer.execute(text("CREATE TABLE unwritten (name TEXT, row_id INTEGER, gone INTEGER)"))
            for table in (*_LINE_TABLES, "happy_paths"):
                for event, row, gone in (("INSERT", "new", 0), ("UPDATE", "new", 0), ("DELETE", "old", 1)):
                    self._writer.execute(text(_NOTE.format(event=event, table=table, row=row, gone=gone)))

    def _begin_lines(self, connection: Connection, *, is_new: bool) -> None:
        if is_new:
            self._files.append({file_of("metrics"): [self._header(connection)]})
            self._is_header_due = False
        self._rewrite(connection, self._stale)

    def _in_transaction(self, work: Callable[[Connection], None]) -> None:
        # SQLite's write lock is what keeps two threads from writing lines at once.
        connection = self.connect().execution_options(begin="IMMEDIATE")
        try:
            with connection.begin():
                work(connection)
        except BaseException:
            self._files.undo()
            self._forget_names()
            raise
        finally:
            self.release(connection)

    def _write_all(self, connection: Connection) -> None:
        self._write_lines(connection)
        self._rewrite(connection, self._stale)

    def _write_lines(self, connection: Connection) -> None:
        """Append what has changed in the index. The connection holds the write lock."""
        changed: dict[str, set[int]] = {}
        for name, row_id, gone in connection.execute(text("SELECT DISTINCT name, row_id, gone FROM unwritten")):
            changed.setdefault(name, set())
            if gone or name == "happy_paths":
                self._stale.add(name)
            if not gone:
                changed[name].add(row_id)
        if not changed:
            self._files.append({})
            return
        connection.execute(text("DELETE FROM unwritten"))
        anew = {name for name in self._stale & changed.keys() if name in _ALWAYS_ANEW or self._is_small(name)}
        groups: dict[str, Iterable[bytes]] = {
            file_of(name): self._lines.lines(connection, name, sorted(ids))
            for name, ids in changed.items()
            if name not in anew
        }
        # Blocks may hold numbers of our own samples, which must not be given again when the blocks are gone.
        if self._is_header_due or "blocks" in changed:
            own = file_of("metrics")
            groups[own] = itertools.chain([self._header(connection)], groups.get(own, ()))
        self._files.append(groups)
        self._is_header_due = False
        self._rewrite(connection, anew)

    def _is_small(self, name: str) -> bool:
        return self._files.size_bytes(file_of(name)) <= _SMALL_FILE_BYTES

    def _rewrite(self, connection: Connection, names: set[str]) -> None:
        """Write files anew, with the rows that there are."""
        for name in sorted(names):
            if name == "happy_paths":
                write_whole(self._happy_paths, happy_paths_document(connection))
            else:
                self._files.replace(file_of(name), self._all_lines(connection, name))
            self._stale.discard(name)

    def _all_lines(self, connection: Connection, name: str) -> Iterator[bytes]:
        if name == "metrics":
            yield self._header(connection)
        yield from self._lines.all_lines(connection, name)

    def _header(self, connection: Connection) -> bytes:
        """Says what the store is; repeated with the first change after every opening, so that no damage loses it."""
        created_at = connection.execute(text("SELECT value FROM store_meta WHERE key = 'created_at'")).scalar_one()
        last = connection.execute(text("SELECT max(seq) FROM sqlite_sequence WHERE name = 'metrics'")).scalar()
        fields = {
            "store_id": self.store_id,
            "format": FORMAT,
            "created_at": created_at,
            "next_sequence": (last or 0) + 1,
        }
        return encode_line(fields)

    def _forget_names(self) -> None:
        self._lines = TableLines(Names())
        self._is_header_due = True
