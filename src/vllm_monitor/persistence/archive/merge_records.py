"""Records of other stores merged into a store: by id, and the one that is further along stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.merge_session import MergeSession
from vllm_monitor.persistence.documents.document_stores import DocumentStore, StoredDocuments
from vllm_monitor.persistence.documents.documents import DocumentKind, Entry, merged_entry
from vllm_monitor.persistence.records.prediction_scores import SCORE_COLUMNS, ScoreKey, score_checksum
from vllm_monitor.persistence.records.progress import is_further_along
from vllm_monitor.persistence.records.rare_rows import RareKind, Row

__all__ = ["RecordMerger"]

_ROWS_PER_TRANSACTION = 200


class RecordMerger:
    """Adds records, and what is left of expired predictions. Not for several threads at once.

    Args:
        session: The store.
    """

    def __init__(self, session: MergeSession) -> None:
        self._session = session

    def add_records(self, kind: RareKind[Any], rows: Sequence[Row]) -> int:
        """Add or replace records, in transactions of a few hundred; the number that changed the store.

        Args:
            kind: Their kind.
            rows: With every column of the kind and its checksum, which were verified.
        """
        return sum(
            self._add_some(kind, rows[at : at + _ROWS_PER_TRANSACTION])
            for at in range(0, len(rows), _ROWS_PER_TRANSACTION)
        )

    def add_prediction_scores(self, origin_store_id: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add counts of expired predictions; of two counts of the same origin the larger stays, for it is newer."""
        return sum(
            self._add_scores(origin_store_id, rows[at : at + _ROWS_PER_TRANSACTION])
            for at in range(0, len(rows), _ROWS_PER_TRANSACTION)
        )

    def add_documents(
        self, documents: DocumentStore, kind: DocumentKind[Any], entries: Mapping[str, Entry], now: float
    ) -> int:
        """Merge documents, entry by entry (``merged_entry``); the number that changed the store."""
        changed: dict[str, Entry] = {}

        def change(stored: StoredDocuments) -> Mapping[str, Entry]:
            changed.clear()
            for name, entry in entries.items():
                merged = merged_entry(stored.entries.get(name), entry, now)
                if merged is not None:
                    changed[name] = merged
            return changed

        if entries:
            self._session.write(lambda connection: documents.update(kind, connection, change))
        return len(changed)

    def _add_some(self, kind: RareKind[Any], rows: Sequence[Row]) -> int:
        table = schema.metadata.tables[kind.table]
        columns = (*kind.columns, "checksum")
        incoming: dict[str, Row] = {}
        for row in rows:
            known = incoming.get(row[kind.id_field])
            if known is None or is_further_along(kind, row, known):
                incoming[row[kind.id_field]] = {name: row[name] for name in columns}

        def work(connection: Connection) -> int:
            query = select(table).where(table.c[kind.id_field].in_(list(incoming)))
            stored = {found[kind.id_field]: _named(found) for found in connection.execute(query).mappings()}
            new = [row for record_id, row in incoming.items() if record_id not in stored]
            if new:
                connection.execute(insert(table), new)
            newer = [
                (found["id"], incoming[record_id])
                for record_id, found in stored.items()
                if is_further_along(kind, incoming[record_id], found)
            ]
            for number, row in newer:
                connection.execute(table.update().where(table.c.id == number), row)
            return len(new) + len(newer)

        return self._session.write(work) if incoming else 0

    def _add_scores(self, origin_store_id: str, rows: Sequence[Mapping[str, Any]]) -> int:
        def work(connection: Connection) -> int:
            origin_id = self._session.origin(connection, origin_store_id)
            return sum(self._add_score(connection, {**row, "origin_id": origin_id}) for row in rows)

        return self._session.write(work)

    def _add_score(self, connection: Connection, row: Mapping[str, Any]) -> bool:
        table = schema.prediction_scores
        row = {name: row[name] for name in SCORE_COLUMNS}
        row["checksum"] = score_checksum(row)
        query = select(table).where(*(table.c[name] == row[name] for name in ("origin_id", *ScoreKey._fields)))
        found = connection.execute(query).mappings().first()
        stored = None if found is None else _named(found)
        if stored is None:
            connection.execute(insert(table), row)
        elif row["predictions"] > stored["predictions"] or stored["checksum"] != score_checksum(stored):
            connection.execute(table.update().where(table.c.id == stored["id"]), row)
        else:
            return False
        return True


def _named(row: RowMapping) -> Row:
    return {str(name): value for name, value in row.items()}
