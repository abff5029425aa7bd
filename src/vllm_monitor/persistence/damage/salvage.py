"""Damaged stores that were set aside: what can be read of them is brought into the store that took their place."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.archive.merge import StoreMerger
from vllm_monitor.persistence.archive.snapshot_reader import SnapshotReader
from vllm_monitor.persistence.archive.store_copy import StoreCopier, copy_models
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.damage.rescue import rescue
from vllm_monitor.persistence.damage.rescued_store import RescuedStore
from vllm_monitor.persistence.damage.set_aside import files_set_aside, report_path
from vllm_monitor.persistence.documents.document_stores import TableDocuments
from vllm_monitor.persistence.documents.documents import DOCUMENT_KINDS
from vllm_monitor.persistence.models.model_store import ModelStore
from vllm_monitor.persistence.plain_file import read_plain
from vllm_monitor.persistence.private_file import write_whole
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.persistence.sqlite_file import make_engine

__all__ = ["SalvageReport", "reports_in", "salvage_file"]

_LOG = logging.getLogger(__name__)
_RESCUE_SUFFIX = ".rescued"

Advance = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """What was recovered from a damaged store.

    Args:
        file: The damaged file, which is kept.
        store_id: The store that it was.
        finished_at: Unix seconds.
        found: Intact rows in it, by table.
        added: What of them is new in the store now, by type (``samples``, ``checkpoints`` ...).
        lost_rows: Rows that were found, but damaged.
    """

    file: str
    store_id: str
    finished_at: float
    found: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    lost_rows: int = 0

    def summary(self) -> str:
        """What came back, in a few words."""
        parts = [f"{number} {table.replace('_', ' ')}" for table, number in self.added.items() if number]
        return ", ".join(parts) or "nothing new"


def reports_in(config: PersistenceConfig) -> list[SalvageReport]:
    """What was recovered from each file that was set aside, oldest first."""
    reports = []
    for path in map(report_path, files_set_aside(config)):
        if path.exists():
            try:
                reports.append(SalvageReport(**json.loads(read_plain(path))))
            except (OSError, ValueError, TypeError) as error:
                _LOG.warning("the report %s cannot be read: %s", path, error)
    return reports


def salvage_file(
    damaged: Path,
    config: PersistenceConfig,
    now: Callable[[], float],
    *,
    advance: Advance = lambda _done, _total, _what: None,
) -> SalvageReport:
    """Bring what can be read of a damaged store into the store of a configuration, and write down what that was.

    Doing it again adds nothing twice, so an interrupted salvage is simply started again. The caller holds the lock
    of salvage, and the store is there and of this version.

    Args:
        damaged: The file that was set aside.
        config: Settings of the store.
        now: Unix seconds.
        advance: Told how far it is; what it raises ends the work.

    Raises:
        StorageError: When the store cannot be written, or was replaced meanwhile.
        OSError, sqlite3.Error: When the damaged file cannot be read, or the disk is full.
    """
    rescued = RescuedStore(damaged.with_name(f"{damaged.name}{_RESCUE_SUFFIX}"), config)
    try:
        lost = rescue(damaged, rescued, advance=lambda done, total: advance(done, total, "reading pages"))
        store_id = rescued.finish(damaged.name)
        added = _copy(rescued.path, config, now(), advance)
    finally:
        rescued.abandon()
    found = {table: number for table, number in rescued.found.items() if number}
    report = SalvageReport(str(damaged), store_id, now(), found, added, lost)
    write_whole(report_path(damaged), json.dumps(asdict(report), indent=1).encode())
    return report


def _copy(rescued: Path, config: PersistenceConfig, now: float, advance: Advance) -> dict[str, int]:
    engine = make_engine(rescued, config)
    try:
        with closing(SqlStore(config.db_path, config, now)) as store, engine.connect() as connection:
            with connection.begin(), StoreMerger(store, compress=config.compression_enabled) as merger:
                copier = StoreCopier(SnapshotReader(connection, strict=False), merger, progress=advance)
                copier.run()
                added = dict(copier.added)
                if config.backend is StorageBackend.SQLITE:  # elsewhere they are files, which were not harmed
                    added.update(_copy_documents(connection, merger, now))
                # The files of their arrays, where they have any, are still in their place.
                added["models"] = copy_models(connection, ModelStore(config), merger, config, _left_out)
            if not store.is_current():
                raise StoreDamagedError(
                    f"{config.db_path} was replaced while a damaged store was brought into it",
                    hint="It is done again with the new one.",
                )
            return {name: number for name, number in added.items() if number}
    finally:
        engine.dispose()


def _copy_documents(connection: Connection, merger: StoreMerger, now: float) -> dict[str, int]:
    documents = TableDocuments(compress=True)
    return {
        name: merger.add_documents(documents, kind, documents.read(kind, connection).entries, now)
        for name, kind in DOCUMENT_KINDS.items()
    }


def _left_out(what: str, error: Exception) -> None:
    _LOG.warning("%s cannot be recovered: %s", what, error)
