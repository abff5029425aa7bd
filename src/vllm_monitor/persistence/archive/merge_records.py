"""Records of other stores merged into a store: by id, and the one that is further along stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.merge_session import MergeSession
from vllm_monitor.persistence.documents.document_stores import DocumentStore, StoredDocuments
from vllm_monitor.persistence.documents.documents import DocumentKind, Entry, merged_entry
from vllm_monitor.persistence.records.prediction_scores import SCORE_COLUMNS, ScoreKey, score_checksum
from vllm_monitor.persistence.records.rare_rows import RareKind, Row
from vllm_monitor.records import AlertState, AttemptStatus, PredictionOutcome

__all__ = ["RecordMerger", "is_further_along"]

_ROWS_PER_TRANSACTION = 200

_ATTEMPT_RANKS: dict[str, int] = {
    AttemptStatus.INTENDED: 0,
    AttemptStatus.ACTING: 1,
    AttemptStatus.SETTLED: 2,
    AttemptStatus.ABANDONED: 2,
}
_ALERT_RANKS: dict[str, int] = {
    AlertState.INACTIVE: 0,
    AlertState.PENDING: 1,
    AlertState.FIRING: 2,
    AlertState.RESOLVED: 3,
}
_PROGRESS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "mitigation_attempts": lambda row: _ATTEMPT_RANKS.get(row["status"], 0),
    "predictions": lambda row: float(row["outcome"] != PredictionOutcome.OPEN),
    "alerts": lambda row: _ALERT_RANKS.get(row["state"], 0),
    "happy_paths": lambda row: _or_never(row["updated_at"]),
    "failure_patterns": lambda row: _or_never(row["last_seen"]),
}


def is_further_along(kind: RareKind[Any], incoming: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether a row of the same id replaces the one that is here.

    Attempts and alerts by their status, predictions once they are resolved, happy paths and failure patterns when
    they were updated later. Of two that are equally far along, and of all other kinds, the one that is here stays.
    """
    progress = _PROGRESS.get(kind.table)
    return progress is not None and progress(incoming) > progress(stored)


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


def _or_never(time: float | None) -> float:
    return float("-inf") if time is None else time


def _named(row: RowMapping) -> Row:
    return {str(name): value for name, value in row.items()}
