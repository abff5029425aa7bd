"""Import of the folder that the earlier design kept: its ``monitor.db`` and its JSON files, never its pickles."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vllm_monitor.errors import ArchiveError, VLLMMonitorError
from vllm_monitor.persistence.archive.merge import StoreMerger
from vllm_monitor.persistence.legacy.legacy_documents import DOCUMENTS, entries_of, is_ours
from vllm_monitor.persistence.legacy.legacy_files import LegacyDatabase, NotUnderstoodError, read_json
from vllm_monitor.persistence.legacy.legacy_records import LegacyRecords
from vllm_monitor.persistence.legacy.legacy_samples import LegacySample, add_samples, sample_of
from vllm_monitor.persistence.manager import PersistenceManager
from vllm_monitor.persistence.records.rare_kinds import HAPPY_PATHS
from vllm_monitor.persistence.records.rare_rows import RareKind, Row

__all__ = ["LegacyReport", "import_legacy", "is_legacy"]

_LOG = logging.getLogger(__name__)
_DATABASE = "monitor.db"
_HAPPY_PATHS = "happy_paths.json"
_SAMPLES_PER_PART = 10_000
_ROWS_PER_PART = 200
_BYTES_PER_PART = 8 << 20
_MOST_NOTES = 50

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class LegacyReport:
    """What an import of the earlier design's files found.

    Args:
        folder: The folder.
        counts: What could be understood, by type (``samples``, ``checkpoints``, ``plugins`` ...).
        added: What of that was new or newer than what was here; all zero when it was imported before.
        not_understood: What could not be understood, by ``TYPE: reason``, with how often.
        notes: What else an operator should know: models that were left alone, files that are damaged.
    """

    folder: str
    counts: Mapping[str, int]
    added: Mapping[str, int]
    not_understood: Mapping[str, int]
    notes: tuple[str, ...]


def is_legacy(source_dir: Path) -> bool:
    """Whether a folder is one of the earlier design: its database, or without one its JSON files."""
    if (source_dir / "manifest.json").exists():
        return False
    if (source_dir / _DATABASE).exists():
        try:
            with LegacyDatabase(source_dir / _DATABASE) as database:
                return database.is_legacy
        except ArchiveError:
            return False
    for name in DOCUMENTS:
        with suppress(NotUnderstoodError):
            if not is_ours(read_json(source_dir / f"{name}.json")):
                return True
    return False


def import_legacy(source_dir: Path, store: PersistenceManager) -> LegacyReport:
    """Merge the files of the earlier design into a store; importing them again changes nothing.

    What is here already stays as it is: samples are known by their row, records by their id (made from their
    content where they had none), documents by their name. The folder is only read, and treated as hostile: no
    links, no pickles, no code, sizes limited. Plugins are not trusted by being imported, and guardrails whose
    condition is text come disabled.

    Args:
        source_dir: The folder of the earlier design, or a copy of it.
        store: Where to.

    Raises:
        ArchiveError: When the folder is none of the earlier design.
        StoreUnavailableError: When the store cannot be written. What was merged before stays; do it again.
    """
    if not is_legacy(source_dir):
        raise ArchiveError(
            f"{source_dir} holds nothing of the earlier design",
            hint="Give the folder with its monitor.db; archives of this design are imported with import_data().",
        )
    return _Import(source_dir, store).run()


@dataclass(slots=True)
class _Import:
    source_dir: Path
    store: PersistenceManager
    counts: Counter[str] = field(default_factory=Counter)
    added: Counter[str] = field(default_factory=Counter)
    not_understood: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def run(self) -> LegacyReport:
        records = LegacyRecords()
        target = self.store._written_store()  # noqa: SLF001  # a verb of the manager that has a file of its own
        with StoreMerger(target, compress=self.store.config.compression_enabled) as merger:
            if (self.source_dir / _DATABASE).exists():
                with LegacyDatabase(self.source_dir / _DATABASE) as database:
                    self._import_database(database, records, merger)
            self._import_happy_paths(records, merger)
        for name, record_of in DOCUMENTS.items():
            self._import_documents(name, record_of)
        self._note_models()
        return LegacyReport(
            folder=str(self.source_dir),
            counts=dict(self.counts),
            added={name: self.added[name] for name in self.counts},
            not_understood=dict(self.not_understood),
            notes=tuple(self.notes[:_MOST_NOTES]),
        )

    def _import_database(self, database: LegacyDatabase, records: LegacyRecords, merger: StoreMerger) -> None:
        journal = database.path.with_name(f"{_DATABASE}-journal")
        if journal.exists() and journal.stat().st_size:
            self._note(f"{journal.name} was left alone: open and close the database with its own program first")
        for table, (kind, row_of) in records.tables.items():
            rows = self._understood(table, self._rows(database, table), row_of)
            self._merge_records(merger, kind, table, rows)
        origin = _origin_of(database)
        samples = self._understood("samples", self._rows(database, "metrics"), sample_of)
        for part in _parts(samples, _SAMPLES_PER_PART, _size_of_sample):
            self.added["samples"] += add_samples(merger, origin, part)
        for table in sorted(set(database.columns) - set(records.tables) - {"metrics"} - {"sqlite_sequence"}):
            self._note(f"the table {table[:60]} is unknown and was left out")

    def _rows(self, database: LegacyDatabase, table: str) -> Iterator[dict[str, Any]]:
        try:
            yield from database.rows(table)
        except sqlite3.Error as error:
            self._note(f"reading {table} ended early: {error}")

    def _understood(
        self, name: str, rows: Iterable[dict[str, Any]], convert: Callable[[dict[str, Any]], Item]
    ) -> Iterator[Item]:
        for row in rows:
            try:
                item = convert(row)
            except (NotUnderstoodError, VLLMMonitorError, RecursionError) as error:
                self._count_odd(name, error)
            else:
                self.counts[name] += 1
                yield item

    def _merge_records(self, merger: StoreMerger, kind: RareKind[Any], name: str, rows: Iterable[Row]) -> None:
        for part in _parts(rows, _ROWS_PER_PART, _size_of_row):
            self.added[name] += merger.add_records(kind, part)

    def _import_happy_paths(self, records: LegacyRecords, merger: StoreMerger) -> None:
        entries = self._entries(_HAPPY_PATHS, "path_id")
        rows = [{"path_id": path_id, **fields} for path_id, fields in entries]
        self._merge_records(
            merger, HAPPY_PATHS, "happy_paths", self._understood("happy_paths", rows, records.happy_path)
        )

    def _import_documents(self, name: str, record_of: Callable[[str, Mapping[str, Any]], Any]) -> None:
        known = self.store.document_revisions(name)
        save: Callable[[dict[str, Any]], dict[str, int]] = getattr(self.store, f"save_{name}")
        for entry_name, fields in self._entries(f"{name}.json", "name"):
            try:
                record = record_of(entry_name, fields)
                self.counts[name] += 1
                if entry_name not in known:
                    self.added[name] += len(save({entry_name: record}))
            except (NotUnderstoodError, VLLMMonitorError, RecursionError) as error:
                self._count_odd(name, error)
                self._note(f"{name}: {entry_name[:60]!r} was left out: {error}")

    def _entries(self, file_name: str, name_field: str) -> list[tuple[str, dict[str, Any]]]:
        path = self.source_dir / file_name
        if not path.exists() and not path.is_symlink():
            return []
        try:
            content = read_json(path)
            if is_ours(content):
                raise NotUnderstoodError("it is a document of this design")
            return entries_of(content, name_field)
        except NotUnderstoodError as error:
            self._count_odd(file_name, error)
            self._note(f"{file_name} was left out: {error}")
            return []

    def _note_models(self) -> None:
        folder = self.source_dir / "models"
        names = sorted(path.stem for path in folder.glob("*.pkl")) if folder.is_dir() else []
        if names:
            shown = ", ".join(name[:40] for name in names[:10])
            self._note(f"{len(names)} pickled models were left alone, since opening them runs code: {shown}")

    def _count_odd(self, name: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, NotUnderstoodError) else type(error).__name__
        self.not_understood[f"{name}: {reason[:200]}"] += 1

    def _note(self, text: str) -> None:
        _LOG.warning("importing %s: %s", self.source_dir, text)
        self.notes.append(text)


def _origin_of(database: LegacyDatabase) -> str:
    """The same for every copy of a file: made from its oldest metric, which the earlier design never deleted."""
    first: Any = None
    with suppress(sqlite3.Error):
        first = next(database.rows("metrics"), None)
    content = json.dumps(first, default=repr, sort_keys=True)
    return f"legacy-{hashlib.blake2b(content.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()}"


def _parts(items: Iterable[Item], most: int, size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    part: list[Item] = []
    size = 0
    for item in items:
        part.append(item)
        size += size_of(item)
        if len(part) >= most or size > _BYTES_PER_PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def _size_of_row(row: Row) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))


def _size_of_sample(sample: LegacySample) -> int:
    return 100 + len(sample.metadata_json or "")
