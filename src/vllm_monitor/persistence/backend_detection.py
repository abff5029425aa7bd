"""Which backend a folder holds, so that tools need not be told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.json_backend.json_lines import INDEX_FILE, LINES_FILE

__all__ = ["database_path", "detect_backend"]


def database_path(config: PersistenceConfig) -> Path:
    """The SQLite file that answers questions: the store itself, or the index of the JSON backend."""
    return config.storage_dir / INDEX_FILE if config.backend is StorageBackend.JSON else config.db_path


def detect_backend(config: PersistenceConfig) -> StorageBackend | None:
    """The backend of the store in ``config.storage_dir``; ``None`` when there is none or it does not show."""
    if config.db_path.exists():
        return StorageBackend.SQLITE if _has_documents(config.db_path) else None
    return StorageBackend.JSON if (config.storage_dir / LINES_FILE).exists() else None


def _has_documents(path: Path) -> bool:
    """Whether guardrails, plugins or strategies are kept in the database."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT 1 FROM documents LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return False  # older, damaged, or locked: opening it will say more
