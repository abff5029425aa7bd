"""Versions of learned models of other stores merged into a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.merge_session import MergeSession
from vllm_monitor.persistence.codecs.text_column import from_text_column
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.models.model_store import MODEL_COLUMNS, ModelStore
from vllm_monitor.persistence.records.rare_rows import Row

__all__ = ["ModelMerger"]


class ModelMerger:
    """Adds versions that are not here. Not for several threads at once.

    The newest version of a name is the one that is loaded, so a version that is older than our newest is only added
    where its own number is free below that one, and none is added that would be the next to be removed. Give the
    versions of a name newest first: then doing it again changes nothing.

    Args:
        session: The store.
        config: Where the store keeps models, and how many.
    """

    def __init__(self, session: MergeSession, config: PersistenceConfig) -> None:
        self._session = session
        self._models = ModelStore(config)
        self._kept = config.model_versions_kept

    def add(self, row: Mapping[str, Any], arrays: bytes) -> bool:
        """Add a version; ``False`` when it is here, or has no place here.

        Args:
            row: As stored in the other store, verified.
            arrays: Its arrays as stored, verified.

        Raises:
            StoreUnavailableError: When it cannot be written.
        """
        packed = any(arrays[4:8])  # else these are the high bytes of the length of a header
        incoming: Row = {name: row[name] for name in MODEL_COLUMNS}
        name = from_text_column(row["model_name"])
        incoming["file_name"] = self._models.file_name_of(name, row["model_id"], packed=packed) if arrays else None
        if self._session.read(lambda connection: self._number_for(connection, incoming)) is None:
            return False
        # Before the transaction, which must be short.
        self._session.guard(lambda: self._models.put_file(incoming, arrays))
        obsolete: list[str] = []

        def work(connection: Connection) -> bool:
            number = self._number_for(connection, incoming)
            if number is None:
                return False
            obsolete[:] = self._models.write(connection, {**incoming, "version": number}, arrays)
            return True

        is_added = self._session.write(work)
        self._models.remove_files(obsolete)
        return is_added

    def _number_for(self, connection: Connection, incoming: Row) -> int | None:
        """Which version it becomes; ``None`` when it is not added."""
        table = schema.models
        query = select(table.c.model_id, table.c.version, table.c.timestamp)
        if connection.execute(query.where(table.c.model_id == incoming["model_id"])).first() is not None:
            return None
        known = connection.execute(query.where(table.c.model_name == incoming["model_name"])).all()
        version: int = incoming["version"]
        newest = max((row.version for row in known), default=0)
        if incoming["timestamp"] > max((row.timestamp for row in known), default=float("-inf")):
            return max(version, newest + 1)
        later = sum(row.version > version for row in known)
        is_free = 0 < version < newest and all(row.version != version for row in known)
        return version if is_free and later < self._kept else None
