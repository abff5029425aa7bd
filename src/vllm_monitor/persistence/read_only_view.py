"""A store that cannot be written (a read-only disk, a folder of somebody else), but can be read."""

from __future__ import annotations

import os
import sqlite3
import threading
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import NullPool

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.forks.connection_gate import GATE
from vllm_monitor.persistence.migrate import check_revision, revision_of
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, open_for_reading

__all__ = ["ReadOnlyView", "view_of"]


class ReadOnlyView:
    """Answers questions from a database that this process cannot write. Thread-safe; nothing stays open.

    Args:
        config: Settings.
    """

    def __init__(self, config: PersistenceConfig) -> None:
        self.catalogue = SeriesCatalogue()

        def connect() -> sqlite3.Connection:
            return open_for_reading(config.db_path, config.durable_timeout_seconds)

        self._engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)

        @event.listens_for(self._engine, "begin")
        def begin(connection: Any) -> None:
            connection.connection.dbapi_connection.execute("BEGIN")

    def reading(self) -> Connection:
        """A connection; give it to :meth:`release`, in the same thread.

        Raises:
            StoreUnavailableError: When something that is no file lies beside the database.
            sqlite3.Error, DBAPIError: When the database cannot be read.
        """
        who = GATE.enter()
        try:
            return self._engine.connect()
        except BaseException:
            GATE.leave(who)
            raise

    def release(self, connection: Connection) -> None:
        """Take back what :meth:`reading` gave."""
        try:
            connection.close()
        finally:
            GATE.leave(threading.get_ident())


def view_of(config: PersistenceConfig) -> ReadOnlyView | None:
    """A view of a store that can be read but not written; ``None`` when it is not such a store."""
    path = config.db_path
    if config.backend is StorageBackend.JSON or not path.is_file() or not os.access(path, os.R_OK):
        return None
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return None  # whatever is wrong, it may be more than that
    view = ReadOnlyView(config)
    try:
        connection = view.reading()
        try:
            is_ours = not check_revision(*revision_of(connection), str(path))
        finally:
            view.release(connection)
    except (*DATABASE_ERRORS, StoreUnavailableError):
        return None  # the writer says what is wrong
    return view if is_ours else None
