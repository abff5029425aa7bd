"""Where documents are kept: JSON files (backends ``HYBRID`` and ``JSON``) or a table (``SQLITE``)."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.documents.document_rows import entry_of_row, row_of_entry
from vllm_monitor.persistence.documents.document_text import (
    DocumentText,
    parse_document,
    salvage_document,
    write_document,
)
from vllm_monitor.persistence.documents.documents import DocumentKind, Entry
from vllm_monitor.persistence.private_file import make_private_folder, put_aside, retryable_lock, write_whole

__all__ = ["DocumentStore", "FileDocuments", "StoredDocuments", "TableDocuments", "documents_of"]

_LOG = logging.getLogger(__name__)
_SETTLED_SECONDS = 1.0
"""A broken file that is younger may be one that an editor is still writing."""
_LOOKS = 4
_LOOK_AGAIN_SECONDS = 0.1

Change = Callable[["StoredDocuments"], Mapping[str, Entry]]
OnDamage = Callable[[Path, Path, int], None]
"""Called with a damaged file, the name it was kept as, and the number of entries that could be read."""


@dataclass(slots=True)
class StoredDocuments:
    """All entries of one kind.

    Args:
        entries: Name to entry, deletions included.
        damaged: How many entries could not be read.
        absent_is_deleted: Whether an entry that is not there was taken out by a person (else it was lost).
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    damaged: int = 0
    absent_is_deleted: bool = False


class DocumentStore(ABC):
    """Reads and changes entries; any number of processes may do so at the same time."""

    visible_before_commit: bool

    @abstractmethod
    def read(self, kind: DocumentKind[Any], connection: Connection | None) -> StoredDocuments:
        """All entries of a kind.

        Raises:
            OSError, DBAPIError: When they cannot be read now.
            StoreTooNewError: When a newer version wrote them.
        """

    @abstractmethod
    def update(self, kind: DocumentKind[Any], connection: Connection, change: Change) -> None:
        """Write the entries that ``change`` makes of those stored, before anybody else changes them.

        Raises:
            OSError, DBAPIError: When they cannot be written now; nothing was.
            StoreTooNewError: When a newer version wrote what is there.
        """


def documents_of(config: PersistenceConfig, on_damage: OnDamage) -> DocumentStore:
    """Where a configuration keeps its documents."""
    if config.backend is StorageBackend.SQLITE:
        return TableDocuments(compress=config.compression_enabled)
    return FileDocuments(config, on_damage)


class FileDocuments(DocumentStore):
    """One JSON file for each kind, replaced as a whole under a lock.

    Args:
        config: Names the files.
        on_damage: Told of damaged files.
    """

    visible_before_commit = True

    def __init__(self, config: PersistenceConfig, on_damage: OnDamage) -> None:
        self._config = config
        self._on_damage = on_damage
        self._clock = SystemClock()

    def path_of(self, kind: DocumentKind[Any]) -> Path:
        """The file of a kind."""
        name: str = getattr(self._config, f"{kind.name}_file")
        return self._config.storage_dir / name

    def read(self, kind: DocumentKind[Any], connection: Connection | None) -> StoredDocuments:
        """All entries; a damaged file is set aside, and what it holds is salvaged."""
        del connection
        path = self.path_of(kind)
        try:
            text = self._parse(kind, path)
        except StoreDamagedError as error:
            text = self._repair(kind, path, error)
        return self._stored(text)

    def update(self, kind: DocumentKind[Any], connection: Connection, change: Change) -> None:
        """Read, change and replace the file under the lock of all documents."""
        del connection
        path = self.path_of(kind)
        make_private_folder(path.parent)
        damaged: StoreDamagedError | None = None
        with _lock(self._config):
            try:
                text = self._parse(kind, path)
            except StoreDamagedError as error:
                damaged = error
                text = _salvaged(kind, path)
            changed = change(self._stored(text))
            if damaged is not None:
                self._replace_damaged(kind, path, text or DocumentText(), changed, damaged)
            elif changed:
                write_whole(path, _bytes_of(kind, text or DocumentText(), changed))

    def _parse(self, kind: DocumentKind[Any], path: Path) -> DocumentText | None:
        """What the file says; ``None`` when there is none."""
        for look in range(_LOOKS):
            try:
                return parse_document(kind, path.read_bytes(), str(path))
            except FileNotFoundError:
                return None
            except IsADirectoryError as error:
                raise StoreDamagedError(f"{path} is a folder", hint="Remove it.") from error
            except StoreDamagedError:
                if look == _LOOKS - 1 or self._clock.now() - path.stat().st_mtime > _SETTLED_SECONDS:
                    raise
            threading.Event().wait(_LOOK_AGAIN_SECONDS)
        return None

    def _repair(self, kind: DocumentKind[Any], path: Path, error: StoreDamagedError) -> DocumentText | None:
        """Set a damaged file aside; where that cannot be done now, only look into it."""
        try:
            with _lock(self._config):
                try:
                    return self._parse(kind, path)  # somebody else may have mended it
                except StoreDamagedError as found:
                    text = _salvaged(kind, path)
                    self._replace_damaged(kind, path, text, {}, found)
                    return text
        except OSError as fault:
            _LOG.error("%s; it cannot be set aside: %s", error, fault)
            return _salvaged(kind, path)

    def _replace_damaged(
        self,
        kind: DocumentKind[Any],
        path: Path,
        text: DocumentText,
        changed: Mapping[str, Entry],
        error: StoreDamagedError,
    ) -> None:
        stamp = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y%m%dT%H%M%S")
        aside = put_aside(path, stamp)
        salvaged = len(text.entries)
        write_whole(path, _bytes_of(kind, text, changed), keep_old_as=aside)
        _LOG.error("%s; it was kept as %s, %d entries could be read", error.message, aside, salvaged)
        self._on_damage(path, aside, salvaged)

    def _stored(self, text: DocumentText | None) -> StoredDocuments:
        if text is None:
            return StoredDocuments()
        return StoredDocuments(dict(text.entries), len(text.unreadable), absent_is_deleted=not text.salvaged)


class TableDocuments(DocumentStore):
    """The table ``documents``.

    Args:
        compress: Whether large entries are packed.
    """

    visible_before_commit = False

    def __init__(self, *, compress: bool) -> None:
        self._compress = compress

    def read(self, kind: DocumentKind[Any], connection: Connection | None) -> StoredDocuments:
        """All entries whose checksums match."""
        stored = StoredDocuments()
        if connection is None:
            return stored
        table = schema.documents
        query = select(table).where(table.c.kind == kind.name).order_by(table.c.id)
        for row in connection.execute(query).mappings():
            try:
                stored.entries[from_text_column(row["name"])] = entry_of_row(
                    {str(column): value for column, value in row.items()}
                )
            except StoreDamagedError as error:
                stored.damaged += 1
                _LOG.warning("a row of documents was skipped: %s", error)
        return stored

    def update(self, kind: DocumentKind[Any], connection: Connection, change: Change) -> None:
        """Change rows inside the transaction of ``connection``."""
        table = schema.documents
        for name, entry in change(self.read(kind, connection)).items():
            row = row_of_entry(kind.name, name, entry, compress=self._compress)
            same = (table.c.kind == kind.name) & (table.c.name == to_text_column(name))
            if not connection.execute(table.update().where(same).values(row)).rowcount:
                connection.execute(insert(table), row)


def _bytes_of(kind: DocumentKind[Any], text: DocumentText, changed: Mapping[str, Entry]) -> bytes:
    unreadable = {key: tree for key, tree in text.unreadable.items() if key not in map(to_text_column, changed)}
    whole = DocumentText({**text.entries, **changed}, unreadable, text.extra, text.salvaged)
    return write_document(kind, whole)


def _lock(config: PersistenceConfig) -> AbstractContextManager[None]:
    """The lock of all documents of a store."""
    return retryable_lock(config.storage_dir / "documents.lock", config.durable_timeout_seconds)


def _salvaged(kind: DocumentKind[Any], path: Path) -> DocumentText:
    return DocumentText(salvaged=True) if path.is_dir() else salvage_document(kind, path.read_bytes())
