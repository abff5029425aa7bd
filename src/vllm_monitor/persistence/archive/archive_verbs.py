"""Exporting the store and importing archives."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.codecs.arguments import checked_path
from vllm_monitor.persistence.documents.document_stores import DocumentStore, documents_of
from vllm_monitor.persistence.models.model_store import ModelStore
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, cause_of
from vllm_monitor.persistence.store_access import StoreAccess

if TYPE_CHECKING:
    from vllm_monitor.persistence.archive.archive_reports import ExportReport, ImportReport, Progress
    from vllm_monitor.persistence.sql_store import SqlStore

__all__ = ["ArchiveVerbs"]

_LOG = logging.getLogger(__name__)


class ArchiveVerbs(StoreAccess):
    """Exporting the store and importing archives. Part of ``PersistenceManager``.

    These calls take as long as the store is large; saving and reading go on meanwhile.
    """

    def export_data(
        self,
        output_dir: str | os.PathLike[str],
        start_time: float | None = None,
        end_time: float | None = None,
        *,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write a consistent copy of the store into a folder: what was saved before this call, and nothing later.

        The folder appears when it is complete. It can be imported by any backend, and again by this one. Documents,
        models and counts of expired predictions are always in it. Plugins are, but not which of them are trusted.

        Args:
            output_dir: A folder that is missing, empty, or an older archive of this store, which is replaced.
            start_time: Unix seconds; only records and samples from then on. ``None`` is from the beginning.
            end_time: Only up to then, inclusive. ``None`` is to the end.
            progress: Called as ``progress(done, total, what)``.

        Raises:
            ArchiveError: When the folder holds something else, or cannot be written.
            ConfigurationError: When the range of time is empty.
            StoreUnavailableError: When the store cannot be written or read now, so that the copy would lack something.
        """
        from vllm_monitor.persistence.archive.archive import ArchiveWriter  # noqa: PLC0415  # opening a store stays light
        from vllm_monitor.persistence.archive.store_copy import Bounds  # noqa: PLC0415  # likewise

        writer = ArchiveWriter(
            checked_path(output_dir, "output_dir"),
            self._now(),
            bounds=Bounds.checked(start_time, end_time),
            compress=self.config.compression_enabled,
            progress=progress,
        )
        store = self._written_store()
        connection = store.reading()
        try:
            return writer.write(store.store_id, connection, self._document_store(), ModelStore(self.config))
        finally:
            store.release(connection)

    def import_data(
        self, import_dir: str | os.PathLike[str], merge: bool = True, *, progress: Progress | None = None
    ) -> ImportReport:
        """Verify an archive and merge it into the store; importing it again changes nothing.

        The archive may come from anywhere: nothing of it is imported unless all of it is as it must be, nothing in
        it is run, and its plugins are not trusted by being imported. Samples are recognised by the store they first
        arrived in, records by their ids (the one that is further along stays), documents by when they were changed.
        After an interruption, importing again completes it.

        Args:
            import_dir: A folder that :meth:`export_data` wrote.
            merge: ``False``: only into a store that holds no samples and no records yet.
            progress: Called as ``progress(done, total, what)``.

        Raises:
            ArchiveError: When the archive is damaged, hostile, or none; or with ``merge=False`` into a store that
                is not empty.
            StoreTooNewError: When a newer version wrote the archive.
            StoreUnavailableError: When the store cannot be written.
        """
        from vllm_monitor.persistence.archive.archive_import import (  # noqa: PLC0415  # opening a store stays light
            import_archive,
            refuse_full_store,
            verified_archive,
        )

        folder = checked_path(import_dir, "import_dir")
        store = self._written_store()
        if not merge:
            refuse_full_store(store)
        with verified_archive(folder, self.config.storage_dir, progress) as archive:
            try:
                return import_archive(archive, store, self.config, self._document_store(), self._now(), progress)
            except (OSError, *DATABASE_ERRORS) as error:
                raise StoreUnavailableError(
                    f"the import stopped half-way: {cause_of(error)}",
                    hint="Check the disk of storage_dir, then import again: what is there already is recognised.",
                ) from error

    def export_parquet(
        self,
        output_dir: str | os.PathLike[str],
        start_time: float | None = None,
        end_time: float | None = None,
        *,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write samples and records as Parquet files for analysis; they cannot be imported again.

        Needs the extra ``parquet``. What the files hold is documented in ``vllm_monitor.persistence.archive.parquet``.

        Args:
            output_dir: A folder that is missing or empty; it appears when it is complete.
            start_time: As for :meth:`export_data`.
            end_time: As for :meth:`export_data`.
            progress: As for :meth:`export_data`.

        Raises:
            ConfigurationError: When pyarrow is not installed, or the range of time is empty.
            ArchiveError: When the folder holds something, or cannot be written.
            StoreUnavailableError: As for :meth:`export_data`.
        """
        from vllm_monitor.persistence.archive.parquet import export_parquet  # noqa: PLC0415  # opening a store stays light
        from vllm_monitor.persistence.archive.store_copy import Bounds  # noqa: PLC0415  # likewise

        folder, bounds = checked_path(output_dir, "output_dir"), Bounds.checked(start_time, end_time)
        store = self._written_store()
        connection = store.reading()
        try:
            return export_parquet(folder, store.store_id, connection, bounds, progress)
        finally:
            store.release(connection)

    def _document_store(self) -> DocumentStore:
        return documents_of(self.config, _log_damage)

    def _written_store(self) -> SqlStore:
        """The store, with everything in it that was saved before.

        Raises:
            StoreUnavailableError: When something cannot be written now.
        """
        if self._closed:
            raise StoreUnavailableError("the store is closed", hint="Do this before close(), or open it again.")
        flushed = self.flush_all()
        store = self._writer.store
        if store is None or not flushed:
            error = self._writer.state.error
            raise StoreUnavailableError(
                "what was saved cannot be written to the store now",
                hint=error.hint if error is not None else "Try again when the store answers in time.",
            )
        return store


def _log_damage(path: Path, aside: Path, entries: int) -> None:
    _LOG.error("%s was damaged; it was kept as %s, %d entries could be read", path, aside, entries)
