"""How documents are saved and loaded, whatever their kind."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from vllm_monitor.errors import (
    ConfigurationError,
    RecordNotFoundError,
    StaleRevisionError,
    StorageError,
    StoreDamagedError,
    StoreUnavailableError,
)
from vllm_monitor.persistence.codecs.arguments import (
    checked_filter,
    checked_items,
    checked_mapping,
    checked_text,
    shown,
)
from vllm_monitor.persistence.documents.document_items import DOCUMENT_ROWS, DocumentItem
from vllm_monitor.persistence.documents.document_stores import DocumentStore, StoredDocuments, documents_of
from vllm_monitor.persistence.documents.documents import DOCUMENT_KINDS, DocumentKind, Edit, Entry
from vllm_monitor.persistence.documents.own_item_access import OwnItemAccess
from vllm_monitor.persistence.pending import Batch, RareItem
from vllm_monitor.persistence.records.rare_kinds import EVENTS
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.records import Event, GuardrailPolicy, PluginRecord, Severity, StrategyRecord

__all__ = ["DocumentAccess"]

_LOG = logging.getLogger(__name__)
Record = TypeVar("Record", GuardrailPolicy, PluginRecord, StrategyRecord)
Revisions = Mapping[str, int] | None


class DocumentAccess(OwnItemAccess):
    """Remembers which entries its caller has seen, so that a change can be told from what is merely old."""

    def _begin(self) -> None:
        super()._begin()
        self._documents: DocumentStore = documents_of(self.config, self._report_damaged_document)
        self._known_lock = threading.Lock()
        self._known_entries: dict[str, dict[str, Entry]] = {name: {} for name in DOCUMENT_KINDS}
        self._announced: set[Path] = set()

    def _save_documents(self, kind: DocumentKind[Record], given: Any, expected: Revisions) -> dict[str, int]:
        if expected is not None:
            expected = checked_mapping(expected, "expected_revisions")
        known, stored = self._known(kind), self._look_at(kind)
        edits = {
            name: Edit(
                fields=(fields := _fields(kind, name, value)),
                fallback=_fallback(kind, name, stored.entries.get(name), fields),
                known=known.get(name),
                expected=None if expected is None else expected.get(name),
            )
            for name, value in _named(kind, given)
        }
        return self._submit(kind, edits)

    def _delete_document(self, kind: DocumentKind[Any], name: str, expected: int | None) -> None:
        name = checked_text(name, "name")
        found = self._look_at(kind).entries.get(name)
        if found is None or found.deleted:
            raise RecordNotFoundError(f"there is no {name!r} among the {kind.name}", hint="Load them to see the names.")
        self._submit(kind, {name: Edit(fields=None, known=self._known(kind).get(name), expected=expected)})

    def _submit(self, kind: DocumentKind[Any], edits: Mapping[str, Edit]) -> dict[str, int]:
        if not edits:
            return {}
        item = DocumentItem(
            DOCUMENT_ROWS, uuid.uuid4().hex, {}, store=self._documents, documents=kind, edits=edits, now=self._now
        )
        self._wait_for(item)
        stored = self._look_at(kind)
        outcome = item.outcome if item.outcome is not None else item.apply(stored)
        if outcome.stale:
            raise StaleRevisionError(
                f"changed meanwhile among the {kind.name}: {', '.join(map(repr, outcome.stale))}",
                hint="Load them again, make the change on what is there now, and save it with those revisions.",
            )
        if outcome.left_out:
            _LOG.warning("deleted meanwhile among the %s, and left so: %s", kind.name, ", ".join(outcome.left_out))
        entries = {**stored.entries, **outcome.changed}
        saved = {name: entries[name] for name in edits if name in entries and name not in outcome.left_out}
        self._remember(kind, saved)
        return {name: entry.revision for name, entry in saved.items()}

    def _load_documents(self, kind: DocumentKind[Record], target: str | None) -> dict[str, Record]:
        only = checked_filter(target, "target")
        stored = self._look_at(kind)
        self._remember(kind, stored.entries)
        records: dict[str, Record] = {}
        damaged = stored.damaged
        for name, entry in stored.entries.items():
            if entry.deleted:
                continue
            try:
                record = kind.record_of(name, entry)
            except StoreDamagedError as error:
                damaged += 1
                _LOG.warning("skipped: %s", error)
                continue
            if only is None or record.target == only:
                records[name] = record
        self._count_damage(damaged)
        return records

    def _look_at(self, kind: DocumentKind[Any], *, for_counting: bool = False) -> StoredDocuments:
        """All entries, with what is not stored yet."""
        read = self._documents.peek if for_counting else self._documents.read

        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> StoredDocuments:
            waiting = [
                item
                for item in memory.rare
                if isinstance(item, DocumentItem) and item.documents is kind and not item.visible
            ]
            try:
                stored = read(kind, connection)
            except OSError as error:
                self._writer.state.last_error = f"the {kind.name} cannot be read: {error}"
                _LOG.error("the %s cannot be read: %s", kind.name, error)
                if self.config.required:
                    raise StoreUnavailableError(
                        f"the {kind.name} cannot be read: {error}", hint="Check the permissions of storage_dir."
                    ) from error
                stored = StoredDocuments()
            for item in waiting:
                stored.entries.update(item.apply(stored).changed)
            return stored

        stored = self._look(ask)
        self._announce_troubles()
        return stored

    def _notice_documents(self) -> None:
        """Find out about files that somebody edited, though nobody asks for what they hold."""
        if not self._closed:
            self._documents.notice()
            self._announce_troubles()

    def _count_documents(self) -> dict[str, int]:
        """How many documents of each kind there are; a kind that cannot be read now is left out."""
        self._notice_documents()
        counts: dict[str, int] = {}
        for name, kind in DOCUMENT_KINDS.items():
            with suppress(StorageError):  # told by health()
                counts[name] = sum(
                    not entry.deleted for entry in self._look_at(kind, for_counting=True).entries.values()
                )
        return counts

    def _announce_troubles(self) -> None:
        """One event for each file that cannot be read, until it can be read again."""
        troubles = {trouble.path: trouble for trouble in self._documents.troubles()}
        with self._known_lock:
            new = [trouble for path, trouble in troubles.items() if path not in self._announced]
            self._announced = set(troubles)
        for trouble in new:
            self._tell(
                Event(
                    timestamp=self._now(),
                    event_type="document_unreadable",
                    message=f"{trouble.message}.",
                    severity=Severity.CRITICAL,
                    data={"file": str(trouble.path)},
                    event_id=trouble.mark,  # every process that sees it tells the same event
                )
            )
        if new:
            self._writer.wake()

    def _known(self, kind: DocumentKind[Any]) -> dict[str, Entry]:
        with self._known_lock:
            return dict(self._known_entries[kind.name])

    def _remember(self, kind: DocumentKind[Any], entries: Mapping[str, Entry]) -> None:
        with self._known_lock:
            self._known_entries[kind.name].update(entries)

    def _report_damaged_document(self, path: Path, aside: Path, entries: int) -> None:
        self._writer.state.quarantined += (str(aside),)
        with self._known_lock:
            told = path in self._announced
        self._tell(
            Event(
                timestamp=self._now(),
                event_type="document_quarantined",
                message=f"{path.name} was damaged; it was kept as {aside.name}, the new one has {entries} entries.",
                severity=Severity.WARNING if told else Severity.CRITICAL,
                data={"file": str(aside), "entries": entries},
            )
        )

    def _tell(self, event: Event) -> None:
        row = EVENTS.to_row(event)
        self._pending.add_rare(RareItem(EVENTS, row["event_id"], row))


def _named(kind: DocumentKind[Any], given: Any) -> list[tuple[str, Any]]:
    """The entries of either form of argument, each with its name."""
    if isinstance(given, Mapping):
        entries = list(given.items())
    else:
        entries = [(getattr(record, "name", None), record) for record in checked_items(given, kind.name, _as_it_is)]
    for name, value in entries:
        if type(name) is not str or getattr(value, "name", name) != name:
            raise ConfigurationError(
                f"{shown(name)} is no name for one of the {kind.name}",
                hint=f"Pass {kind.record_type.__name__} records, or a mapping of their names to them.",
            )
    return entries


def _as_it_is(record: Any) -> Any:
    return record  # its kind says whether it is one


def _fields(kind: DocumentKind[Any], name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return kind.fields_of(value)
    if value.get("name", name) != name:
        raise ConfigurationError(f"{name!r} has another name inside", hint="Let both be the same.")
    return kind.encoded({field: part for field, part in value.items() if field != "name"})


def _fallback(kind: DocumentKind[Any], name: str, stored: Entry | None, fields: Mapping[str, str]) -> dict[str, str]:
    """All fields of the entry, for the case that it is gone when some fields of it are written."""
    if all(field in fields for field in kind.types):
        return {}
    present = dict(stored.fields) if stored is not None else {}
    missing = kind.missing({**present, **fields})
    if missing:
        raise ConfigurationError(
            f"{name!r} among the {kind.name} needs {', '.join(missing)}", hint="Name every field that it must have."
        )
    return present
