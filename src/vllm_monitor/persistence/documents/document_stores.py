"""Where documents are kept: JSON files (backends ``HYBRID`` and ``JSON``) or a table (``SQLITE``)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.documents.document_file import DocumentFile, DocumentTrouble
from vllm_monitor.persistence.documents.document_rows import entry_of_row, row_of_entry
from vllm_monitor.persistence.documents.document_text import DocumentText
from vllm_monitor.persistence.documents.documents import DOCUMENT_KINDS, DocumentKind, Entry
from vllm_monitor.persistence.private_file import LONGEST_LOCK_WAIT_SECONDS, retryable_lock
from vllm_monitor.persistence.private_folder import make_private_folder

__all__ = ["DocumentStore", "FileDocuments", "StoredDocuments", "TableDocuments", "documents_of"]

_LOG = logging.getLogger(__name__)
Change = Callable[["StoredDocuments"], Mapping[str, Entry]]
OnDamage = Callable[[Path, Path, int], None]
"""Called with a damaged file, the name it was kept as, and the number of entries in the new one."""


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
    def peek(self, kind: DocumentKind[Any], connection: Connection | None) -> StoredDocuments:
        """As :meth:`read`, for counting: what cannot be read is passed over without a word.

        Raises:
            OSError, StoreTooNewError: As :meth:`read`.
        """

    @abstractmethod
    def update(self, kind: DocumentKind[Any], connection: Connection, change: Change) -> None:
        """Write the entries that ``change`` makes of those stored, before anybody else changes them.

        Raises:
            OSError, DBAPIError: When they cannot be written now; nothing was.
            StoreTooNewError: When a newer version wrote what is there.
        """

    @abstractmethod
    def notice(self) -> None:
        """Look whether something was changed from outside, and whether it can still be read."""

    @abstractmethod
    def troubles(self) -> list[DocumentTrouble]:
        """What could not be read as a whole when it was last looked at."""


def documents_of(config: PersistenceConfig, on_damage: OnDamage) -> DocumentStore:
    """Where a configuration keeps its documents."""
    if config.backend is StorageBackend.SQLITE:
        return TableDocuments(compress=config.compression_enabled)
    return FileDocuments(config, on_damage)


class FileDocuments(DocumentStore):
    """One JSON file for each kind, replaced as a whole under a lock.

    Args:
        config: Names the files.
        on_damage: Told when a file that could not be read was replaced.
    """

    visible_before_commit = True

    def __init__(self, config: PersistenceConfig, on_damage: OnDamage) -> None:
        self._config = config
        self._on_damage = on_damage
        self._files = {
            kind.name: DocumentFile(kind, self.path_of(kind), self._lock) for kind in DOCUMENT_KINDS.values()
        }

    def path_of(self, kind: DocumentKind[Any]) -> Path:
        """The file of a kind."""
        name: str = getattr(self._config, f"{kind.name}_file")
        return self._config.storage_dir / name

    def last_good(self, kind: DocumentKind[Any]) -> DocumentText | None:
        """The last version of a kind's file that could be read; see :meth:`DocumentFile.last_good`."""
        return self._files[kind.name].last_good()

    def read(self, kind: DocumentKind[Any], connection: Connection | None) -> StoredDocuments:
        """All entries; of a file that cannot be read those of its last good version."""
        del connection
        return _stored(self._files[kind.name].read())

    def peek(self, kind: DocumentKind[Any], connection: Connection | None) -> StoredDocuments:
        """All entries of the file, or of its last good version."""
        del connection
        return _stored(self._files[kind.name].peek())

    def update(self, kind: DocumentKind[Any], connection: Connection, change: Change) -> None:
        """Read, change and replace the file under the lock of all documents."""
        del connection
        file = self._files[kind.name]
        make_private_folder(file.path.parent)
        with self._lock(min(LONGEST_LOCK_WAIT_SECONDS, self._config.durable_timeout_seconds)):
            replaced = file.change(lambda text: change(_stored(text)))
        if replaced is not None:
            self._on_damage(file.path, *replaced)

    def notice(self) -> None:
        """See which files were changed, and whether they can still be read."""
        for file in self._files.values():
            file.notice()

    def troubles(self) -> list[DocumentTrouble]:
        """The files that could not be read when they were last looked at."""
        return [trouble for file in self._files.values() if (trouble := file.trouble) is not None]

    def _lock(self, timeout_seconds: float) -> AbstractContextManager[None]:
        """The lock of all documents of a store."""
        return retryable_lock(self._config.storage_dir / "documents.lock", timeout_seconds)


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

    def peek(self, kind: DocumentKind[Any], connection: Connection | None) -> StoredDocuments:
        """All entries whose checksums match."""
        return self.read(kind, connection)

    def update(self, kind: DocumentKind[Any], connection: Connection, change: Change) -> None:
        """Change rows inside the transaction of ``connection``."""
        table = schema.documents
        for name, entry in change(self.read(kind, connection)).items():
            row = row_of_entry(kind.name, name, entry, compress=self._compress)
            same = (table.c.kind == kind.name) & (table.c.name == to_text_column(name))
            if not connection.execute(table.update().where(same).values(row)).rowcount:
                connection.execute(insert(table), row)

    def notice(self) -> None:
        """Nothing: nobody edits a table by hand."""

    def troubles(self) -> list[DocumentTrouble]:
        """None: a damaged row is skipped by itself."""
        return []


def _stored(text: DocumentText | None) -> StoredDocuments:
    if text is None:
        return StoredDocuments()
    return StoredDocuments(dict(text.entries), len(text.unreadable), absent_is_deleted=not text.salvaged)
