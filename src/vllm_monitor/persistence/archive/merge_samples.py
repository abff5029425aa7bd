"""Samples of other stores (or of older copies of this one) merged into a store, each of them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.known_samples import KnownSamples, SampleKeys
from vllm_monitor.persistence.archive.merge_rollups import NO_BUCKETS, Buckets, NewRollup, RollupMerger
from vllm_monitor.persistence.archive.merge_session import MergeSession, Place
from vllm_monitor.persistence.archive.merged_samples import ScrapeMatrix, StreamName, select_loose
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod, block_reader, encode_block
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, encode_loose_block
from vllm_monitor.persistence.samples.sample_rows import SeriesName, stored_series

__all__ = ["SampleMerger"]

_ROWS_PER_BLOCK = 1800
_CELLS_PER_BLOCK = 4 << 20
_SAMPLES_PER_LOOSE_BLOCK = 100_000


class SampleMerger:
    """Adds samples that are not in the store yet. Not for several threads at once.

    Whether a sample is there is looked up without a lock, the block is coded without a lock, and just before it is
    inserted the look-up is repeated: other processes may have merged the same meanwhile.

    Args:
        session: The store.
        rollups: Keeps roll-ups in step with what is added.
        method: How new blocks are compressed.
    """

    def __init__(self, session: MergeSession, rollups: RollupMerger, method: BlockMethod) -> None:
        self._session = session
        self._rollups = rollups
        self._method = method
        self._known = KnownSamples()

    def add_scrapes(self, stream: StreamName, matrix: ScrapeMatrix, covered: Buckets = NO_BUCKETS) -> int:
        """Add the scrapes that are not here yet; the number of samples added.

        Args:
            stream: Where they belong.
            matrix: The scrapes.
            covered: Minutes for which roll-ups come later; see ``RollupMerger.to_roll_up``.
        """
        matrix = matrix.in_order()
        step = max(1, min(_ROWS_PER_BLOCK, _CELLS_PER_BLOCK // max(1, len(matrix.names))))
        return sum(
            self._add_matrix(stream, matrix.rows(np.arange(at, min(at + step, len(matrix)))), covered)
            for at in range(0, len(matrix), step)
        )

    def add_scrape_block(
        self, stream: StreamName, names: Sequence[SeriesName], block: BlockRow, covered: Buckets = NO_BUCKETS
    ) -> int:
        """Add a sealed block: as it is when all of it is new; the number of samples added."""
        reader = block_reader(block.payload)
        keys = SampleKeys.of_scrapes(reader.sequences())
        fresh = self._fresh(stream, BlockKind.SCRAPES, keys)
        if not fresh.any():
            return 0
        if not fresh.all():
            return self.add_scrapes(stream, ScrapeMatrix.of_block(names, block.payload), covered)
        to_roll_up = self._rollups.to_roll_up(stream, reader.times_ms(), reader.sequences(), covered)
        rollups = []
        if to_roll_up.any():
            rollups = self._rollups.of_scrapes(ScrapeMatrix.of_block(names, block.payload).rows(to_roll_up))

        def insert_it(connection: Connection, place: Place) -> int:
            layout_id = self._session.layout(connection, place[1], names)
            self._rollups.insert(connection, stream, place, rollups)
            row = block._replace(stream_id=place[1], origin_id=place[0], layout_id=layout_id)
            return _insert_block(connection, row)

        added = self._insert_if_fresh(stream, BlockKind.SCRAPES, keys, insert_it)
        return self.add_scrape_block(stream, names, block, covered) if added is None else added

    def add_loose(
        self,
        stream: StreamName,
        names: Mapping[int, SeriesName],
        loose: LooseBlock,
        covered: Buckets = NO_BUCKETS,
    ) -> int:
        """Add single samples that are not here yet; the number added.

        Args:
            stream: Where they belong; its source is empty.
            names: What ``loose.series_ids`` mean.
            loose: Ascending by sequence and position.
            covered: As for :meth:`add_scrapes`.
        """
        # Rows stay whole: by their sequences it is known what was rolled up.
        whole_rows = np.append(np.flatnonzero(np.diff(loose.sequences)) + 1, len(loose.sequences))
        added = at = 0
        while at < len(loose.values):
            fits = int(np.searchsorted(whole_rows, at + _SAMPLES_PER_LOOSE_BLOCK, side="right")) - 1
            end = int(whole_rows[fits] if fits >= 0 and whole_rows[fits] > at else whole_rows[whole_rows > at][0])
            added += self._add_loose_part(stream, names, select_loose(loose, np.arange(at, end)), covered)
            at = end
        return added

    def _add_matrix(self, stream: StreamName, matrix: ScrapeMatrix, covered: Buckets) -> int:
        series = [stored_series(name).series for name in matrix.names]
        while True:
            fresh = self._fresh(stream, BlockKind.SCRAPES, SampleKeys.of_scrapes(matrix.sequences))
            if not fresh.any():
                return 0
            part = matrix if fresh.all() else matrix.rows(fresh)
            payload = encode_block(
                part.times_ms, part.sequences, part.bits, series, method=self._method, present=part.present
            )

            to_roll_up = self._rollups.to_roll_up(stream, part.times_ms, part.sequences, covered)
            rollups = self._rollups.of_scrapes(part.rows(to_roll_up))

            def insert_it(
                connection: Connection,
                place: Place,
                part: ScrapeMatrix = part,
                payload: bytes = payload,
                rollups: Sequence[NewRollup] = rollups,
            ) -> int:
                layout_id = self._session.layout(connection, place[1], part.names)
                self._rollups.insert(connection, stream, place, rollups)
                times, sequences = part.times_ms, part.sequences
                return _insert_block(
                    connection,
                    _block_of(BlockKind.SCRAPES, place, layout_id, times, sequences, len(part), part.samples, payload),
                )

            added = self._insert_if_fresh(stream, BlockKind.SCRAPES, SampleKeys.of_scrapes(part.sequences), insert_it)
            if added is not None:
                return added

    def _add_loose_part(
        self, stream: StreamName, names: Mapping[int, SeriesName], loose: LooseBlock, covered: Buckets
    ) -> int:
        while True:
            fresh = self._fresh(stream, BlockKind.LOOSE, SampleKeys(loose.sequences, loose.positions))
            if not fresh.any():
                return 0
            part = select_loose(loose, np.flatnonzero(fresh))
            used, places = np.unique(part.series_ids, return_inverse=True)
            wanted = [names[int(number)] for number in used]

            def number_them(connection: Connection, wanted: Sequence[SeriesName] = wanted) -> list[int]:
                _, stream_id = self._session.place(connection, stream.origin_store_id, stream.target, stream.source)
                return self._session.series(connection, stream_id, wanted)

            numbers = np.array(self._session.write(number_them), dtype=np.int64)[places]
            payload = encode_loose_block(
                part.sequences,
                part.positions,
                part.times_ms,
                numbers,
                part.values,
                part.codes,
                part.metadata,
                method=self._method,
            )

            to_roll_up = np.flatnonzero(self._rollups.to_roll_up(stream, part.times_ms, part.sequences, covered))
            rollups = self._rollups.of_loose(names, select_loose(part, to_roll_up))

            def insert_it(
                connection: Connection,
                place: Place,
                part: LooseBlock = part,
                payload: bytes = payload,
                rollups: Sequence[NewRollup] = rollups,
            ) -> int:
                self._rollups.insert(connection, stream, place, rollups)
                rows, samples = len(np.unique(part.sequences)), len(part.values)
                return _insert_block(
                    connection,
                    _block_of(BlockKind.LOOSE, place, 0, part.times_ms, part.sequences, rows, samples, payload),
                )

            keys = SampleKeys(part.sequences, part.positions)
            added = self._insert_if_fresh(stream, BlockKind.LOOSE, keys, insert_it)
            if added is not None:
                return added

    def _fresh(self, stream: StreamName, kind: BlockKind, keys: SampleKeys) -> NDArray[np.bool_]:
        def look(connection: Connection) -> NDArray[np.bool_]:
            place = self._session.known_place(connection, stream.origin_store_id, stream.target, stream.source)
            if place is None:
                return np.ones(len(keys.sequences), dtype=np.bool_)
            return self._known.fresh(connection, place, kind, keys)

        return self._session.read(look)

    def _insert_if_fresh(
        self, stream: StreamName, kind: BlockKind, keys: SampleKeys, insert_it: Callable[[Connection, Place], int]
    ) -> int | None:
        """Insert in one transaction if all of the samples are still new; ``None`` when they are not."""

        def work(connection: Connection) -> int | None:
            place = self._session.place(connection, stream.origin_store_id, stream.target, stream.source)
            if not self._known.fresh(connection, place, kind, keys).all():
                return None
            self._session.reserve_sequences(connection, place, int(keys.sequences.max()))
            return insert_it(connection, place)

        return self._session.write(work)


def _block_of(
    kind: BlockKind,
    place: Place,
    layout_id: int,
    times_ms: NDArray[np.int64],
    sequences: NDArray[np.int64],
    rows: int,
    samples: int,
    payload: bytes,
) -> BlockRow:
    return BlockRow(
        id=0,
        kind=kind,
        tier=Tier.SEALED,
        stream_id=place[1],
        origin_id=place[0],
        layout_id=layout_id,
        start_ms=int(times_ms.min()),
        end_ms=int(times_ms.max()),
        first_sequence=int(sequences.min()),
        last_sequence=int(sequences.max()),
        scrapes=rows,
        samples=samples,
        checksum=0,
        payload=payload,
    )


def _insert_block(connection: Connection, block: BlockRow) -> int:
    row = block.summed()._asdict()
    del row["id"]
    connection.execute(insert(schema.blocks), row)
    return block.samples
