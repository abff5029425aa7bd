"""Changes of documents on their way to the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from vllm_monitor.persistence.documents.document_stores import DocumentStore, StoredDocuments
from vllm_monitor.persistence.documents.documents import DocumentKind, Edit, Entry, decide
from vllm_monitor.persistence.documents.own_items import OwnItem
from vllm_monitor.persistence.records.rare_rows import RareKind
from vllm_monitor.records import GuardrailPolicy

__all__ = ["DOCUMENT_ROWS", "DocumentItem", "Outcome"]

DOCUMENT_ROWS: RareKind[Any] = RareKind(table="documents", record_type=GuardrailPolicy, id_field="name", forms={})
"""Stands for documents where the kind of a rare record is asked for; their rows are made by ``document_rows``."""
_BYTES_PER_EDIT = 1_500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the edits of one call became.

    Args:
        changed: The entries that were written.
        stale: Names whose revision was not the expected one; nothing was written then.
        left_out: Names that somebody else had deleted.
    """

    changed: Mapping[str, Entry] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(slots=True, eq=False, kw_only=True)
class DocumentItem(OwnItem):
    """The edits of one call: all are written, or, when one is stale, none.

    Args:
        store: Where the documents are.
        documents: The kind of the entries.
        edits: Name to what is wanted of it.
        now: Gives unix seconds.
        outcome: What became of it; ``None`` until it was written.
        visible: Whether readers of the store see it already.
    """

    store: DocumentStore
    documents: DocumentKind[Any]
    edits: Mapping[str, Edit]
    now: Callable[[], float]
    outcome: Outcome | None = None
    visible: bool = False

    def size_bytes(self) -> int:
        """Roughly the memory that it takes."""
        texts = (text for edit in self.edits.values() for text in ({**edit.fallback, **(edit.fields or {})}).values())
        return _BYTES_PER_EDIT * len(self.edits) + sum(map(len, texts))

    def write(self, connection: Connection) -> None:
        """Make the edits on what is stored now."""
        self.store.update(self.documents, connection, self._change)
        self.visible = self.store.visible_before_commit

    def apply(self, stored: StoredDocuments) -> Outcome:
        """What the edits would make of these entries."""
        changed: dict[str, Entry] = {}
        stale: list[str] = []
        left_out: list[str] = []
        written = self.outcome.changed if self.outcome is not None else {}
        for name, edit in self.edits.items():
            found = stored.entries.get(name)
            if found is not None and _is_same(found, written.get(name)):
                changed[name] = found  # written by an earlier attempt whose end was not known
                continue
            decision = decide(found, edit, self.now(), absent_is_deleted=stored.absent_is_deleted)
            if decision.stale:
                stale.append(name)
            elif decision.left_out:
                left_out.append(name)
            elif decision.entry is not None:
                changed[name] = decision.entry
        if stale:
            return Outcome(stale=tuple(stale))
        return Outcome(changed, left_out=tuple(left_out))

    def _change(self, stored: StoredDocuments) -> Mapping[str, Entry]:
        self.outcome = self.apply(stored)
        return {
            name: entry
            for name, entry in self.outcome.changed.items()
            if stored.entries.get(name) is not entry  # it was not written before
        }


def _is_same(found: Entry, written: Entry | None) -> bool:
    return (
        written is not None
        and (found.revision, found.deleted) == (written.revision, written.deleted)
        and dict(found.fields) == dict(written.fields)
    )
