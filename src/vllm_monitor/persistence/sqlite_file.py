"""The SQLite file: made private, checked before it is touched, set aside when it is damaged."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.damage.sqlite_log import log_of
from vllm_monitor.persistence.forks.inherited_files import check_not_inherited
from vllm_monitor.persistence.migrate import check_revision, create, revision_of, upgrade
from vllm_monitor.persistence.plain_file import refuse_strange_companions

__all__ = [
    "DATABASE_ERRORS",
    "Fault",
    "cause_of",
    "fault_of",
    "is_damaged",
    "is_orphaned_log",
    "make_engine",
    "make_one_file",
    "open_for_reading",
    "prepare_file",
    "quarantine",
]

_LOG = logging.getLogger(__name__)
_LARGEST_IDLE_LOG_BYTES = 16 << 20
_SUFFIXES = ("", "-wal", "-shm")


class Fault(Enum):
    """What kind of trouble an exception of the store is."""

    DAMAGED = "damaged"
    BUSY = "busy"
    UNAVAILABLE = "unavailable"
    OTHER = "other"


_FAULT_OF_CODE = {
    sqlite3.SQLITE_CORRUPT: Fault.DAMAGED,
    sqlite3.SQLITE_NOTADB: Fault.DAMAGED,
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
    sqlite3.SQLITE_PROTOCOL: Fault.BUSY,
    sqlite3.SQLITE_FULL: Fault.UNAVAILABLE,
    sqlite3.SQLITE_IOERR: Fault.UNAVAILABLE,
    sqlite3.SQLITE_CANTOPEN: Fault.UNAVAILABLE,
    sqlite3.SQLITE_READONLY: Fault.UNAVAILABLE,
    sqlite3.SQLITE_PERM: Fault.UNAVAILABLE,
    sqlite3.SQLITE_AUTH: Fault.UNAVAILABLE,
    sqlite3.SQLITE_NOMEM: Fault.UNAVAILABLE,
    sqlite3.SQLITE_NOLFS: Fault.UNAVAILABLE,
}


DATABASE_ERRORS = (DBAPIError, sqlite3.Error)
"""What the database raises, with SQLAlchemy around it or without."""


def cause_of(error: BaseException) -> BaseException:
    """The error of the database inside one of SQLAlchemy's, whose text would repeat statement and values."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def fault_of(error: BaseException) -> Fault:
    """Tell a damaged file from a busy, a missing or a full one, and those from a fault of ours."""
    original = cause_of(error)
    if isinstance(original, OSError):
        return Fault.UNAVAILABLE
    code = getattr(original, "sqlite_errorcode", None)
    return Fault.OTHER if code is None else _FAULT_OF_CODE.get(code & 0xFF, Fault.OTHER)


def _uri(path: Path, options: str) -> str:
    return f"file:{quote(str(path.absolute()))}?{options}"


def _connect(path: Path, options: str, **arguments: Any) -> sqlite3.Connection:
    check_not_inherited(path)
    connection: sqlite3.Connection = sqlite3.connect(_uri(path, options), uri=True, **arguments)
    return connection


def _lenient_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def make_engine(path: Path, config: PersistenceConfig) -> Engine:
    """An engine whose transactions begin with what ``execution_options(begin=...)`` says."""
    synchronous = "FULL" if config.durability == "full" else "NORMAL"

    def connect() -> sqlite3.Connection:
        # mode=rw: a file that was taken away must be noticed, not silently made again.
        connection = _connect(
            path,
            "mode=rw",
            timeout=config.durable_timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        # Damaged text must reach the checksum that finds it, not stop the whole query.
        connection.text_factory = _lenient_text
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute(f"PRAGMA journal_size_limit={_LARGEST_IDLE_LOG_BYTES}")
        return connection

    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=QueuePool, max_overflow=100)

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        mode = connection.get_execution_options().get("begin", "DEFERRED")
        # Past SQLAlchemy, which would prepare for a result: this runs for every group of scrapes.
        connection.connection.dbapi_connection.execute(f"BEGIN {mode}")

    return engine


def open_for_reading(path: Path, timeout_seconds: float, *, is_in_use: bool = True) -> sqlite3.Connection:
    """A connection that can only read.

    Args:
        path: The file.
        timeout_seconds: How long it waits for locks.
        is_in_use: Whether others may write meanwhile. SQLite then makes an empty log and its shared memory when
            there are none; the next writer removes them. Otherwise nothing is made, and a log that has something
            in it is still read.

    Raises:
        sqlite3.Error: As :func:`fault_of` tells apart.
        StoreUnavailableError: When this process was forked while its parent used the file.
    """
    refuse_strange_companions(path)
    log = log_of(path)
    has_log = log.exists() and log.stat().st_size > 0
    # A folder that cannot be written has no room for shared memory; without a log nobody writes there either.
    is_free = not has_log and (not is_in_use or not os.access(path.parent, os.W_OK))
    options = "mode=ro&immutable=1" if is_free else "mode=ro"
    connection = _connect(path, options, timeout=timeout_seconds, isolation_level=None)
    connection.text_factory = _lenient_text
    return connection


def prepare_file(path: Path, config: PersistenceConfig) -> None:
    """Make the file if it is missing, check whose it is, and migrate it. The caller holds the store lock.

    Raises:
        StoreTooNewError: When a newer version wrote it; it was not touched.
        StoreUnavailableError: When it is not ours.
        sqlite3.Error, DBAPIError, OSError: As :func:`fault_of` tells them apart.
    """
    if not path.exists():
        # Never opened past SQLite once it is in use: closing it would drop every lock this process has on it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    elif not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if path.stat().st_uid == os.geteuid():
        path.chmod(0o600)
    if not check_revision(*_peek(path), str(path)):
        return
    engine = make_engine(path, config)
    try:
        with engine.connect().execution_options(begin="IMMEDIATE") as connection:
            raw = connection.connection.dbapi_connection
            if raw is None:  # pragma: no cover - SQLAlchemy connects on first use of .connection
                raise StoreUnavailableError(f"{path} has no connection", hint="Try again.")
            if path.stat().st_size == 0:
                raw.cursor().execute("PRAGMA auto_vacuum=INCREMENTAL")  # only before the first table
            raw.cursor().execute("PRAGMA journal_mode=WAL")
            with connection.begin():
                # Looked at again under the write lock: another process may have migrated it meanwhile.
                revision, has_tables = revision_of(connection)
                if check_revision(revision, has_tables, str(path)):
                    (upgrade if has_tables else create)(connection)
    finally:
        engine.dispose()


def make_one_file(path: Path) -> None:
    """Take the write-ahead log of a database that nobody uses into it, and leave no other file beside it.

    Raises:
        sqlite3.Error: As :func:`fault_of` tells them apart.
    """
    connection = _connect(path, "mode=rw", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=DELETE")
    finally:
        connection.close()


def _peek(path: Path) -> tuple[str | None, bool]:
    """The revision of a file and whether it has tables, without leaving a trace beside it."""
    if path.stat().st_size == 0:
        return None, False
    has_log = log_of(path).exists()
    connection = _connect(path, "mode=ro" if has_log else "mode=ro&immutable=1")
    try:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if "alembic_version" not in names:
            return None, bool(names)
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return (row[0] if row else None), True
    finally:
        connection.close()


def is_damaged(path: Path) -> bool:
    """Whether SQLite's own check finds the file damaged; reads all of it."""
    try:
        connection = _connect(path, "mode=rw")
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
        finally:
            connection.close()
    except sqlite3.Error as error:
        return fault_of(error) is Fault.DAMAGED


def is_orphaned_log(path: Path) -> bool:
    """Whether a log lies there whose file is gone or empty; SQLite would remove it."""
    log = log_of(path)
    return log.is_file() and log.stat().st_size > 0 and not (path.exists() and path.stat().st_size)


def quarantine(path: Path, now: float) -> Path:
    """Rename a damaged file, with its log, so that it is kept for salvage. The caller holds the store lock.

    The name is returned also when only the log is there.
    """
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while aside.exists() or log_of(aside).exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    for suffix in reversed(_SUFFIXES):
        part = path.with_name(f"{path.name}{suffix}")
        if part.exists():
            part.rename(aside.with_name(f"{aside.name}{suffix}"))
    _LOG.error("the store %s is damaged; it was kept as %s and a new one was started", path, aside)
    return aside
