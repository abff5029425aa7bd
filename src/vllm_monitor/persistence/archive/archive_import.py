"""Importing an archive: verified to its last row first, then merged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from vllm_monitor.errors import ArchiveError, StoreDamagedError, StoreTooNewError, VLLMMonitorError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.archive_database import ArchiveVerifier, opened_archive, verify_structure
from vllm_monitor.persistence.archive.archive_files import read_manifest, verify_files
from vllm_monitor.persistence.archive.archive_reports import ImportReport, Progress
from vllm_monitor.persistence.archive.manifest import DATABASE_NAME, MODELS_FOLDER, FileEntry, Manifest
from vllm_monitor.persistence.archive.merge import StoreMerger
from vllm_monitor.persistence.archive.snapshot_reader import SnapshotReader
from vllm_monitor.persistence.archive.store_copy import StoreCopier, copy_models, counts_of
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.documents.document_stores import DocumentStore
from vllm_monitor.persistence.documents.document_text import parse_document
from vllm_monitor.persistence.documents.documents import DOCUMENT_KINDS, DocumentKind, Entry
from vllm_monitor.persistence.models.model_store import ModelStore, verify_row
from vllm_monitor.persistence.schema import HEAD_REVISION
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.persistence.sqlite_file import cause_of, make_one_file, prepare_file

__all__ = ["VerifiedArchive", "import_archive", "refuse_full_store", "verified_archive"]

_HINT = "Nothing was imported. Make the archive again with vllm-monitor export, or fetch another copy of it."

_LARGEST_REVISION = 1 << 53
_LARGEST_MODEL_BYTES = 1 << 32
_TELL_TIMES = 200


@dataclass(frozen=True, slots=True)
class VerifiedArchive:
    """An archive every byte of which was verified; see :func:`verified_archive`.

    Args:
        folder: Where it is.
        manifest: What it says of itself.
        connection: To its database.
        documents: Kind to its entries.
    """

    folder: Path
    manifest: Manifest
    connection: Connection
    documents: Mapping[str, Mapping[str, Entry]]


@contextmanager
def verified_archive(folder: Path, room: Path, progress: Progress | None = None) -> Iterator[VerifiedArchive]:
    """Open an archive after verifying all of it.

    Args:
        folder: The archive. Nothing is written to it.
        room: A folder with room for a copy of the database, which an archive of an older version needs.
        progress: Told how far it is.

    Raises:
        ArchiveError: When anything of it is not as it must be.
        StoreTooNewError: When a newer version wrote it.
    """
    manifest = read_manifest(folder)
    if manifest.schema > HEAD_REVISION:
        raise StoreTooNewError(
            f"the archive {folder} has schema {manifest.schema}, this vllm-monitor knows up to {HEAD_REVISION}",
            hint="Upgrade vllm-monitor, then import it again.",
        )
    size_bytes = sum(entry.size_bytes for entry in manifest.files)
    free_bytes = shutil.disk_usage(room).free
    if size_bytes > free_bytes:
        raise ArchiveError(
            f"the archive has {size_bytes} bytes, {room} has room for {free_bytes}",
            hint="Make room on the disk of the store, then import it again.",
        )
    with ExitStack() as opened:
        with _every_fault_refuses(progress) as tell:
            archive = _opened(folder, manifest, room, opened, tell)
        yield archive


def _opened(
    folder: Path, manifest: Manifest, room: Path, opened: ExitStack, progress: Progress | None
) -> VerifiedArchive:
    files = _Steps(progress, sum(entry.size_bytes for entry in manifest.files), "verifying files")
    verify_files(folder, manifest, files.advance)
    verify_structure(folder / DATABASE_NAME, manifest.schema)
    documents = {name: _entries_of(folder, kind, manifest) for name, kind in DOCUMENT_KINDS.items()}
    path = opened.enter_context(_migrated(folder / DATABASE_NAME, manifest.schema, room))
    connection = opened.enter_context(opened_archive(path))
    found = counts_of(connection)
    differing = [name for name, number in found.items() if manifest.counts.get(name, 0) != number]
    if differing:
        raise ArchiveError(f"the archive holds another number of {', '.join(differing)} than it says", hint=_HINT)
    rows = _Steps(progress, sum(found.values()) - found["samples"], "verifying rows")
    ArchiveVerifier(connection, rows.advance).run()
    _verify_models(connection, folder, manifest)
    return VerifiedArchive(folder, manifest, connection, documents)


@contextmanager
def _every_fault_refuses(progress: Progress | None) -> Iterator[Progress | None]:
    """Whatever an archive makes our own code raise, it is refused; what ``progress`` raises is not its fault."""
    raised: list[Exception] = []

    def tell(done: int, total: int, what: str) -> None:
        try:
            if progress is not None:
                progress(done, total, what)
        except Exception as error:
            raised.append(error)
            raise

    try:
        yield None if progress is None else tell
    except VLLMMonitorError:
        raise
    except Exception as error:
        if error in raised:
            raise
        reason = f"{type(error).__name__}: {str(cause_of(error))[:200]}"
        raise ArchiveError(f"the archive cannot be verified ({reason})", hint=_HINT) from error


def import_archive(
    archive: VerifiedArchive,
    store: SqlStore,
    config: PersistenceConfig,
    documents: DocumentStore,
    now: float,
    progress: Progress | None = None,
) -> ImportReport:
    """Merge a verified archive into a store.

    Args:
        archive: From :func:`verified_archive`.
        store: Where to.
        config: Settings of the store.
        documents: The store's documents.
        now: Unix seconds.
        progress: Told how far it is.

    Raises:
        StoreUnavailableError: When the store cannot be written. What was merged before stays; do it again.
    """
    with StoreMerger(store, compress=config.compression_enabled) as merger:
        source = SnapshotReader(archive.connection, strict=True)
        copier = StoreCopier(source, merger, progress=progress)
        copier.run()
        added = dict(copier.added)
        added["models"] = copy_models(archive.connection, _models_of(archive.folder), merger, config, _refuse)
        for name, kind in DOCUMENT_KINDS.items():
            added[name] = merger.add_documents(documents, kind, archive.documents[name], now)
    return ImportReport(
        folder=str(archive.folder),
        store_id=archive.manifest.store_id,
        counts=dict(archive.manifest.counts),
        added=added,
    )


def _models_of(folder: Path) -> ModelStore:
    return ModelStore(PersistenceConfig(storage_dir=folder, models_dir=MODELS_FOLDER))


def _refuse(what: str, error: Exception) -> None:
    raise ArchiveError(f"{what} in the archive cannot be read: {error}", hint="Import another copy of it.") from error


def refuse_full_store(store: SqlStore) -> None:
    """Refuse a store that holds anything.

    Raises:
        ArchiveError: When it holds samples or records.
    """
    connection = store.reading()
    try:
        counts = counts_of(connection)
        hot = connection.execute(select(schema.metrics.c.id).limit(1)).first()
    finally:
        store.release(connection)
    if hot is not None or any(counts.values()):
        raise ArchiveError(
            f"the store {store.path} holds samples or records already",
            hint="Import with merge=True, or into a new storage_dir.",
        )


def _verify_models(connection: Connection, folder: Path, manifest: Manifest) -> None:
    """Every model has its file, every file its model. The files themselves were verified."""
    files = {entry.name: entry for entry in manifest.files if entry.name.startswith(f"{MODELS_FOLDER}/")}
    for row in _models_of(folder).rows(connection):
        try:
            verify_row(row)
        except StoreDamagedError as error:
            raise ArchiveError(error.message, hint=_HINT) from error
        if row["size_bytes"] > _LARGEST_MODEL_BYTES or row["version"] >= _LARGEST_REVISION:
            raise ArchiveError(f"a model has {row['size_bytes']} bytes of arrays, which is too much", hint=_HINT)
        if row["file_name"] is None and row["size_bytes"] == 0:
            continue
        name = f"{MODELS_FOLDER}/{row['file_name']}"
        if files.pop(name, None) != FileEntry(name, row["size_bytes"], row["sha256"]):
            raise ArchiveError(f"version {row['version']} of a model has another file than it says", hint=_HINT)
    if files:
        raise ArchiveError(f"{min(files)} belongs to no model", hint=_HINT)


def _entries_of(folder: Path, kind: DocumentKind[Any], manifest: Manifest) -> dict[str, Entry]:
    name = f"{kind.name}.json"
    if all(entry.name != name for entry in manifest.files):
        return {}
    try:
        text = parse_document(kind, (folder / name).read_bytes(), name)
        for entry_name, entry in text.entries.items():
            if entry.revision >= _LARGEST_REVISION:
                raise StoreDamagedError(f"revision {entry.revision} of {entry_name!r} is too large", hint=_HINT)
            if not entry.deleted:
                kind.record_of(entry_name, entry)
    except (StoreDamagedError, OSError) as error:
        raise ArchiveError(f"{name} of the archive cannot be read: {error}", hint=_HINT) from error
    if text.unreadable:
        raise ArchiveError(f"{name} of the archive has entries that cannot be read", hint=_HINT)
    return dict(text.entries)


@contextmanager
def _migrated(path: Path, revision: str, room: Path) -> Iterator[Path]:
    """The database in the schema of this version: itself, or a copy that was migrated."""
    if revision == HEAD_REVISION:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=".import-", dir=room) as folder:
        copy = Path(folder) / DATABASE_NAME
        shutil.copyfile(path, copy)
        prepare_file(copy, PersistenceConfig(storage_dir=Path(folder)))
        make_one_file(copy)
        yield copy


class _Steps:
    """Counts what was done and tells it, not more often than is worth showing."""

    def __init__(self, progress: Progress | None, total: int, what: str) -> None:
        self._progress = progress
        self._total = max(1, total)
        self._what = what
        self._done = 0
        self._told = 0

    def advance(self, steps: int) -> None:
        """Count some steps."""
        self._done += steps
        if self._progress is not None and (self._done - self._told) * _TELL_TIMES >= self._total:
            self._told = self._done
            self._progress(min(self._done, self._total), self._total, self._what)
