"""Exporting a store: a consistent copy of it, while it is in use, as a folder with a manifest."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import Connection

from vllm_monitor.errors import ArchiveError
from vllm_monitor.persistence.archive.archive_files import describe_files, is_archive, read_manifest
from vllm_monitor.persistence.archive.archive_reports import ExportReport, Progress
from vllm_monitor.persistence.archive.manifest import DATABASE_NAME, MANIFEST_NAME, Manifest
from vllm_monitor.persistence.archive.merge import StoreMerger
from vllm_monitor.persistence.archive.snapshot_reader import SnapshotReader
from vllm_monitor.persistence.archive.store_copy import Bounds, StoreCopier, copy_models, counts_of
from vllm_monitor.persistence.archive.whole_folder import whole_folder
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.documents.document_stores import DocumentStore
from vllm_monitor.persistence.documents.document_text import DocumentText, write_document
from vllm_monitor.persistence.documents.documents import DOCUMENT_KINDS
from vllm_monitor.persistence.models.model_store import ModelStore
from vllm_monitor.persistence.private_file import write_whole
from vllm_monitor.persistence.schema import HEAD_REVISION
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.persistence.sqlite_file import make_one_file, prepare_file

__all__ = ["ArchiveWriter", "check_destination"]

_LOG = logging.getLogger(__name__)
_EVERY_VERSION = 1 << 31


def check_destination(folder: Path, store_id: str) -> None:
    """Whether an archive of a store may be written to a folder.

    It is missing, empty, or an older archive of the same store, which is replaced.

    Raises:
        ArchiveError: When it holds anything else.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ArchiveError(f"{folder} is no folder", hint="Give a folder that does not exist yet.")
    if any(folder.iterdir()) and not is_archive(folder):
        raise ArchiveError(
            f"{folder} holds something that is no archive of vllm-monitor; it was not touched",
            hint="Give a folder that does not exist yet, or an empty one.",
        )
    if is_archive(folder) and read_manifest(folder).store_id != store_id:
        raise ArchiveError(
            f"{folder} is the archive of another store; it was not touched",
            hint="Give another folder, or remove that archive first.",
        )


class ArchiveWriter:
    """Writes one archive. Use it once.

    Args:
        folder: The archive; see :func:`check_destination`. It appears when it is complete, all at once.
        now: Unix seconds.
        bounds: Which records and samples.
        compress: Whether blocks that are made for it are compressed.
        progress: Told how far it is.
    """

    def __init__(
        self, folder: Path, now: float, *, bounds: Bounds, compress: bool, progress: Progress | None = None
    ) -> None:
        self._folder = folder
        self._now = now
        self._bounds = bounds
        self._compress = compress
        self._progress = progress

    def write(
        self, store_id: str, connection: Connection, documents: DocumentStore, models: ModelStore
    ) -> ExportReport:
        """Write what one view of a store shows.

        Args:
            store_id: The store.
            connection: Its view of the store is fixed.
            documents: The store's documents.
            models: The store's models.

        Raises:
            ArchiveError: When the folder cannot be written, or holds something else.
        """
        with whole_folder(self._folder, lambda folder: check_destination(folder, store_id)) as work:
            return self._write(work, store_id, connection, documents, models)

    def _write(
        self, work: Path, store_id: str, connection: Connection, documents: DocumentStore, models: ModelStore
    ) -> ExportReport:
        source = SnapshotReader(connection, strict=False)
        counts = self._write_database(work, source, connection, models)
        counts |= self._write_documents(work, documents, connection)
        manifest = Manifest(
            schema=HEAD_REVISION,
            store_id=store_id,
            created_at=self._now,
            created_by=f"vllm-monitor {version('vllm-monitor')}",
            start_time=self._bounds.start_time,
            end_time=self._bounds.end_time,
            counts=counts,
            files=describe_files(work),
        )
        write_whole(work / MANIFEST_NAME, manifest.to_bytes())
        return ExportReport(
            folder=str(self._folder),
            store_id=store_id,
            counts=counts,
            size_bytes=sum(entry.size_bytes for entry in manifest.files),
            damaged=source.damaged,
        )

    def _write_database(
        self, work: Path, source: SnapshotReader, connection: Connection, models: ModelStore
    ) -> dict[str, int]:
        config = PersistenceConfig(storage_dir=work, backend=StorageBackend.HYBRID, model_versions_kept=_EVERY_VERSION)

        def note(what: str, error: Exception) -> None:
            source.damaged += 1
            _LOG.warning("%s is damaged and left out: %s", what, error)

        path = work / DATABASE_NAME
        prepare_file(path, config)
        store = SqlStore(path, config, self._now)
        try:
            with StoreMerger(store, compress=self._compress) as merger:
                StoreCopier(source, merger, self._bounds, self._progress).run()
                copy_models(connection, models, merger, config, note)
            with store.engine.connect() as written:
                counts = counts_of(written)
        finally:
            store.close()
        make_one_file(path)
        for lock in work.glob("*.lock"):
            lock.unlink()
        return counts

    def _write_documents(self, work: Path, documents: DocumentStore, connection: Connection) -> dict[str, int]:
        counts = {}
        for name, kind in DOCUMENT_KINDS.items():
            stored = documents.read(kind, connection)
            if stored.entries:
                write_whole(work / f"{name}.json", write_document(kind, DocumentText(stored.entries)))
            counts[name] = sum(not entry.deleted for entry in stored.entries.values())
        return counts
