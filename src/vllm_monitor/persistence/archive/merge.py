"""Merging into a store what comes from elsewhere: archives, salvaged files, the files of the earlier design.

Merging twice is merging once. A sample is known by the store it first arrived in, its stream (target and source) and
its sequence, the ``metrics.id`` that it had there; a record by its id; a document by its name and revision; a model
by its id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.archive.merge_models import ModelMerger
from vllm_monitor.persistence.archive.merge_records import RecordMerger
from vllm_monitor.persistence.archive.merge_rollups import NO_BUCKETS, Buckets, NewRollup, RollupMerger
from vllm_monitor.persistence.archive.merge_samples import SampleMerger
from vllm_monitor.persistence.archive.merge_session import MergeSession
from vllm_monitor.persistence.archive.merged_samples import ScrapeMatrix, StreamName, select_loose
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.documents.document_stores import DocumentStore
from vllm_monitor.persistence.documents.documents import DocumentKind, Entry
from vllm_monitor.persistence.records.rare_rows import RareKind, Row
from vllm_monitor.persistence.samples.block_rows import BlockRow
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock
from vllm_monitor.persistence.samples.identities import series_name
from vllm_monitor.persistence.samples.sample_rows import SeriesName
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.records import Series

__all__ = ["StoreMerger", "StreamName"]


class StoreMerger:
    """Merges into an open store, beside its writer. Use it in ``with``, from one thread at a time.

    Everything is written in short transactions of its own, so the store's writer and other processes go on
    meanwhile, and what was merged before an interruption stays: doing it again completes it.

    What is given must have been verified: rows match their checksums, texts are as columns hold them.

    Args:
        store: The store, open.
        compress: Whether blocks that must be made anew are compressed.
    """

    def __init__(self, store: SqlStore, *, compress: bool = True) -> None:
        method = BlockMethod.ZLIB if compress else BlockMethod.STORED
        self._session = MergeSession(store)
        self._rollups = RollupMerger(self._session, method)
        self._samples = SampleMerger(self._session, self._rollups, method)
        self._records = RecordMerger(self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish()

    def add_scrapes(
        self,
        origin_store_id: str,
        target: str,
        source: str,
        series: Sequence[Series],
        times_ms: NDArray[np.int64],
        sequences: NDArray[np.int64],
        bits: NDArray[np.uint64],
        present: NDArray[np.bool_] | None = None,
    ) -> int:
        """Add whole scrapes of one stream, in any order, with their roll-ups of one minute.

        Args:
            origin_store_id: The store where they first arrived.
            target: The server's URL, or empty.
            source: The source within the target; not empty.
            series: The columns.
            times_ms: Unix milliseconds of each scrape.
            sequences: ``metrics.id`` of each in its origin.
            bits: (scrapes, columns) of float64 bits.
            present: (scrapes, columns), false where a series was missing; ``None``: nowhere.

        Returns:
            The number of samples that were new.

        Raises:
            StoreUnavailableError: When the store cannot be written.
        """
        names = [series_name(one) for one in series]
        matrix = ScrapeMatrix(names, times_ms, sequences, bits, present)
        return self._samples.add_scrapes(StreamName(origin_store_id, target, source), matrix)

    def add_scrape_matrix(self, stream: StreamName, matrix: ScrapeMatrix, covered: Buckets = NO_BUCKETS) -> int:
        """As :meth:`add_scrapes`, with the series as another store has named them.

        ``covered`` are the minutes (unix milliseconds of their starts) for which :meth:`add_rollups` comes later.
        """
        return self._samples.add_scrapes(stream, matrix, covered)

    def add_scrape_block(
        self, stream: StreamName, names: Sequence[SeriesName], block: BlockRow, covered: Buckets = NO_BUCKETS
    ) -> int:
        """Add a sealed block of scrapes; its bytes are taken over unchanged where all of it is new.

        Args:
            stream: Where it belongs.
            names: Its columns.
            block: The row in the other store; its numbers of stream, origin and layout mean nothing here.
            covered: As for :meth:`add_scrape_matrix`.

        Returns:
            The number of samples that were new.

        Raises:
            StoreDamagedError: When the block cannot be read.
            StoreUnavailableError: When the store cannot be written.
        """
        return self._samples.add_scrape_block(stream, names, block, covered)

    def add_loose(
        self,
        origin_store_id: str,
        target: str,
        series_rows: Sequence[SeriesName],
        sequences: NDArray[np.int64],
        positions: NDArray[np.int64],
        times_ms: NDArray[np.int64],
        series_index: NDArray[np.int64],
        values: NDArray[np.float64],
        codes: NDArray[np.uint8],
        metadata: Mapping[int, str],
    ) -> int:
        """Add samples that were saved one by one, in any order.

        Args:
            origin_store_id: The store where they first arrived.
            target: The server's URL, or empty.
            series_rows: The series that occur.
            sequences: ``metrics.id`` of the row that each was in.
            positions: Its place in that row.
            times_ms: Unix milliseconds.
            series_index: Its place in ``series_rows``.
            values: float64.
            codes: Type byte (``sample_values``).
            metadata: Place in the arrays to encoded metadata, for those that have any.

        Returns:
            The number of samples that were new.

        Raises:
            StoreUnavailableError: When the store cannot be written.
        """
        loose = LooseBlock(sequences, positions, times_ms, series_index, values, codes, dict(metadata))
        order = np.lexsort((positions, sequences))
        names = dict(enumerate(series_rows))
        return self._samples.add_loose(StreamName(origin_store_id, target, ""), names, select_loose(loose, order))

    def add_loose_samples(
        self, stream: StreamName, names: Mapping[int, SeriesName], loose: LooseBlock, covered: Buckets = NO_BUCKETS
    ) -> int:
        """As :meth:`add_loose`; ``names`` says what the numbers of its series mean."""
        return self._samples.add_loose(stream, names, loose, covered)

    def add_rollups(self, stream: StreamName, step_seconds: int, rollups: Sequence[NewRollup]) -> int:
        """Take over the buckets of a stream that have no roll-up here; their number.

        Args:
            stream: Whose they are.
            step_seconds: Of which step.
            rollups: All that the other store has of this stream and step.

        Raises:
            StoreDamagedError: When one of them cannot be read; none is added then.
            StoreUnavailableError: When the store cannot be written.
        """
        return self._rollups.add(stream, step_seconds, rollups)

    def rollups_within(self, rollup: NewRollup, start_ms: int, end_ms: int) -> list[NewRollup]:
        """The buckets of a roll-up that a range of time touches, unix milliseconds."""
        return self._rollups.within(rollup, start_ms, end_ms)

    def add_record(self, kind: RareKind[Any], row: Row) -> bool:
        """Add a record; ``False`` when one of its id is here that is as far along (see ``is_further_along``)."""
        return self._records.add_records(kind, [row]) > 0

    def add_records(self, kind: RareKind[Any], rows: Sequence[Row]) -> int:
        """Add many records of one kind, in transactions of a few hundred; the number that changed the store."""
        return self._records.add_records(kind, rows)

    def add_prediction_scores(self, origin_store_id: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add counts of expired predictions of one origin; the number that changed the store."""
        return self._records.add_prediction_scores(origin_store_id, rows)

    def add_documents(
        self, documents: DocumentStore, kind: DocumentKind[Any], entries: Mapping[str, Entry], now: float
    ) -> int:
        """Merge documents, entry by entry: the one that was changed last stays.

        Args:
            documents: Those of the store.
            kind: Which.
            entries: Name to entry.
            now: Unix seconds.

        Returns:
            The number of entries that changed the store.

        Raises:
            StoreUnavailableError: When they cannot be written.
        """
        return self._records.add_documents(documents, kind, entries, now)

    def add_model(self, config: PersistenceConfig, row: Mapping[str, Any], arrays: bytes) -> bool:
        """Add a version of a model; ``False`` when it is here, or is older than what is kept here (``ModelMerger``).

        Args:
            config: Settings of the store, which say where its models are.
            row: Its row in the other store.
            arrays: Its arrays as stored there.

        Raises:
            StoreUnavailableError: When it cannot be written.
        """
        return ModelMerger(self._session, config).add(row, arrays)

    def finish(self) -> None:
        """Come to the end; nothing can be added afterwards."""
        self._session.store.after_bulk_change()
