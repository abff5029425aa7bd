"""Which backend a folder holds, so that tools need not be told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import insert, select

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.damage.sqlite_log import log_of
from vllm_monitor.persistence.json_backend.json_lines import INDEX_FILE, LINES_FILE
from vllm_monitor.persistence.plain_file import refuse_strange_companions
from vllm_monitor.persistence.sql_store import SqlStore

__all__ = ["database_path", "detect_backend", "refuse_other_layout", "settle_backend"]

BACKEND_KEY = "backend"


def database_path(config: PersistenceConfig) -> Path:
    """The SQLite file that answers questions: the store itself, or the index of the JSON backend."""
    return config.storage_dir / INDEX_FILE if config.backend is StorageBackend.JSON else config.db_path


def detect_backend(config: PersistenceConfig) -> StorageBackend | None:
    """The backend of the store in ``config.storage_dir``; ``None`` when there is none or it does not show."""
    if config.db_path.exists():
        return _backend_in(config.db_path)
    return StorageBackend.JSON if (config.storage_dir / LINES_FILE).exists() else None


def _backend_in(path: Path) -> StorageBackend | None:
    """What the database says of itself."""
    if not path.is_file():
        return None
    try:
        refuse_strange_companions(path)
        # Without a log nobody has it open; SQLite would make one to look.
        options = "mode=ro" if log_of(path).exists() else "mode=ro&immutable=1"
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?{options}", uri=True)) as connection:
            row = connection.execute("SELECT value FROM store_meta WHERE key = ?", (BACKEND_KEY,)).fetchone()
    except (sqlite3.Error, StoreUnavailableError):
        return None  # older, damaged, or locked: opening it will say more
    return StorageBackend(row[0]) if row is not None and row[0] in set(StorageBackend) else None


def refuse_other_layout(config: PersistenceConfig) -> None:
    """Whether a folder may be opened with a backend, as far as its files show it.

    Raises:
        StoreUnavailableError: When it holds a store of another layout, beside which a second one would begin.
    """
    is_json = config.backend is StorageBackend.JSON
    lines, database = config.storage_dir / LINES_FILE, config.storage_dir / config.db_file
    if is_json and database.exists() and not lines.exists():
        raise _other(config, "an SQLite database", _backend_in(database) or StorageBackend.HYBRID)
    if not is_json and lines.exists() and not database.exists():
        raise _other(config, "JSON lines", StorageBackend.JSON)


def settle_backend(store: SqlStore, config: PersistenceConfig) -> None:
    """Note the backend in a new store, and refuse a store of another one: its documents would not be seen.

    Raises:
        StoreUnavailableError: When it is another one.
    """
    table = schema.store_meta
    query = select(table.c.value).where(table.c.key == BACKEND_KEY)
    with store.engine.connect() as connection:
        found = connection.execute(query).scalar()
    if found is None:
        with store.engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
            found = connection.execute(query).scalar()
            if found is None:
                found = config.backend.value
                connection.execute(insert(table), {"key": BACKEND_KEY, "value": found})
    if found != config.backend.value:
        raise _other(config, "a store", found)


def _other(config: PersistenceConfig, what: str, backend: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{config.storage_dir} holds {what} of the backend {str(backend)!r}, not {config.backend.value!r}",
        hint="Name that backend (--backend, PersistenceConfig(backend=...)), or move with export and import.",
    )
