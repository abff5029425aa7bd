"""Sealing: hot rows become blocks and roll-ups.

Blocks are coded outside of any transaction. One short transaction then inserts the block and its roll-up, deletes the
rows that are in it, and makes rows that stay stand alone if they were stored as their difference from one of those.
Before that the block is decoded again and compared with its rows, so nothing is deleted that cannot be read.
Rows that are damaged stay where they are, for ``check`` to name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select, update

from vllm_monitor.errors import StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.block_rows import BlockKind, BlockRow, RollupRow, Tier
from vllm_monitor.persistence.blocks.codec import BlockMethod, block_reader, encode_block
from vllm_monitor.persistence.blocks.loose_block import LooseBlock, decode_loose_block, encode_loose_block
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.identities import layout_of_series
from vllm_monitor.persistence.loose_rollups import rollups_of_loose
from vllm_monitor.persistence.matrices import Matrix, join_matrices
from vllm_monitor.persistence.rollups import MINUTE_SECONDS, rollup_of_matrix, rollup_row
from vllm_monitor.persistence.sample_rows import MetricsRow, RowDecoder
from vllm_monitor.persistence.scrape_codec import KEYFRAME, LOOSE, Bits, decode_scrape, encode_scrape, row_checksum
from vllm_monitor.persistence.short_transactions import ShortTransactions
from vllm_monitor.persistence.sql_store import EPOCH_KEY, OWN_ORIGIN
from vllm_monitor.records import Series

__all__ = ["Sealed", "Sealer", "matrix_of_block", "method_of", "series_of"]

_LOG = logging.getLogger(__name__)

_IDS_PER_STATEMENT = 500
_MOST_CELLS = 4 << 20
_MOST_LOOSE_SAMPLES = 100_000
_SPARE_COLUMNS = 64

_rows = schema.metrics


@dataclass(slots=True)
class Sealed:
    """What sealing did.

    Args:
        blocks: Blocks made.
        samples: Samples in them.
        damaged: Rows that were left because they cannot be read.
    """

    blocks: int = 0
    samples: int = 0
    damaged: int = 0


@dataclass(slots=True)
class _Waiting:
    """Hot rows of a stream, as last looked at."""

    oldest_id: int = 0
    since: float = 0.0
    damaged: set[int] = field(default_factory=set)


class Sealer:
    """Seals what is due. For one thread at a time, which holds the maintenance lock.

    Args:
        config: Settings.
    """

    def __init__(self, config: PersistenceConfig) -> None:
        self._config = config
        self._waiting: dict[int, _Waiting] = {}
        self._method = method_of(config)

    def seal(self, hand: ShortTransactions, monotonic_seconds: float, *, seal_all: bool = False) -> Sealed:
        """Seal every stream that is due, or everything.

        Args:
            hand: Transactions on the store.
            monotonic_seconds: For streams whose own times do not move.
            seal_all: Also what is not due.

        Raises:
            StoreDamagedError: When a block does not come back as its rows; they stay.
            StoreUnavailableError: When the store was closed, or changed by somebody else meanwhile.
        """
        done = Sealed()
        for stream_id, is_loose, everything in self._due(hand, monotonic_seconds, seal_all=seal_all):
            for ids in self._portions(hand, stream_id, everything=everything):
                if hand.should_stop():
                    return done
                rest = ids
                while rest:
                    if is_loose:
                        rest = self._seal_loose(hand, stream_id, rest, done)
                    else:
                        rest = self._seal_scrapes(hand, stream_id, rest, done)
                    hand.rest()
        return done

    def _due(
        self, hand: ShortTransactions, monotonic_seconds: float, *, seal_all: bool
    ) -> list[tuple[int, bool, bool]]:
        """Stream, whether it is one of single samples, whether all of it is due or only full blocks."""
        query = select(
            _rows.c.stream_id,
            func.count(),
            func.min(_rows.c.start_ms),
            func.max(_rows.c.start_ms),
            func.min(_rows.c.id),
        ).group_by(_rows.c.stream_id)
        with hand.reading() as connection:
            found = connection.execute(query).all()
            streams = schema.streams
            sources = {number: source for number, source in connection.execute(select(streams.c.id, streams.c.source))}
        due = []
        for stream_id, count, start_ms, end_ms, oldest_id in found:
            waiting = self._waiting.setdefault(stream_id, _Waiting())
            if oldest_id != waiting.oldest_id:
                waiting.oldest_id, waiting.since = oldest_id, monotonic_seconds
            waits_seconds = max((end_ms - start_ms) / 1000, monotonic_seconds - waiting.since)
            everything = seal_all or waits_seconds >= self._config.block_seconds
            if everything or count - len(waiting.damaged) >= self._config.block_scrapes:
                due.append((stream_id, sources.get(stream_id) == "", everything))
        self._waiting = {row.stream_id: self._waiting[row.stream_id] for row in found}
        return due

    def _portions(self, hand: ShortTransactions, stream_id: int, *, everything: bool) -> Iterator[list[int]]:
        """Ids of the rows of each block to be made, in order of arrival."""
        query = select(_rows.c.id).where(_rows.c.stream_id == stream_id).order_by(_rows.c.id)
        with hand.reading() as connection:
            damaged = self._waiting[stream_id].damaged
            ids = [number for number in connection.execute(query).scalars() if number not in damaged]
        size = self._config.block_scrapes
        for at in range(0, len(ids), size):
            if everything or at + size <= len(ids):
                yield ids[at : at + size]

    def _seal_scrapes(self, hand: ShortTransactions, stream_id: int, ids: list[int], done: Sealed) -> list[int]:
        """Seal some rows; those that did not fit into the same block are returned."""
        with hand.reading() as connection:
            decoder = RowDecoder(connection, hand.store.catalogue)
            decoded = list(decoder.scrapes(_read(connection, ids)))
            layouts = {
                layout_id: hand.store.catalogue.layout(connection, layout_id)
                for layout_id in {scrape.layout_id for scrape in decoded}
            }
            good = [scrape.row_id for scrape in decoded]
            self._note_damage(stream_id, ids, good, done)
            fitting = _fitting(
                [len(layouts[scrape.layout_id]) for scrape in decoded],
                [layouts[scrape.layout_id] for scrape in decoded],
            )
            taken = decoded[:fitting]
            if not taken:
                return []
            parts = []
            for layout_id in dict.fromkeys(scrape.layout_id for scrape in taken):
                group = [scrape for scrape in taken if scrape.layout_id == layout_id]
                parts.append(
                    Matrix(
                        layouts[layout_id],
                        np.array([scrape.time_ms for scrape in group], dtype=np.int64),
                        np.array([scrape.row_id for scrape in group], dtype=np.int64),
                        np.array([scrape.bits for scrape in group], dtype=np.uint64).reshape(
                            len(group), len(layouts[layout_id])
                        ),
                    )
                )
            matrix = join_matrices(parts)
            series = series_of(connection, hand, matrix.series_ids)
        payload = encode_block(
            matrix.times_ms, matrix.sequences, matrix.bits, series, method=self._method, present=matrix.present
        )
        if not matrix_of_block(payload, matrix.series_ids).is_same_as(matrix):
            raise _not_the_same(stream_id)
        rollup = rollup_of_matrix(matrix, series) if matrix.series_ids else None
        start_ms, end_ms = int(matrix.times_ms.min()), int(matrix.times_ms.max())
        sealed_ids = matrix.sequences.tolist()
        sealed_bits = {scrape.row_id: scrape.bits for scrape in taken}
        with hand.writing() as connection:
            layout_id = layout_of_series(connection, stream_id, matrix.series_ids)
            block = BlockRow(
                0, BlockKind.SCRAPES, Tier.SEALED, stream_id, OWN_ORIGIN, layout_id, start_ms, end_ms,
                sealed_ids[0], sealed_ids[-1], len(sealed_ids), matrix.samples, 0, payload,
            )  # fmt: skip
            rollups = []
            if rollup is not None:
                rollups.append(
                    rollup_row(
                        rollup, series, step_seconds=MINUTE_SECONDS, stream_id=stream_id, origin_id=OWN_ORIGIN,
                        layout_id=layout_id, start_ms=start_ms, end_ms=end_ms, samples=matrix.samples,
                        method=self._method,
                    )
                )  # fmt: skip
            _replace(connection, block, rollups, sealed_ids)
            _let_stand_alone(connection, stream_id, sealed_bits)
        done.blocks += 1
        done.samples += matrix.samples
        return good[fitting:]

    def _seal_loose(self, hand: ShortTransactions, stream_id: int, ids: list[int], done: Sealed) -> list[int]:
        with hand.reading() as connection:
            decoder = RowDecoder(connection, hand.store.catalogue)
            decoded = list(decoder.loose(_read(connection, ids)))
            good = [row_id for row_id, _ in decoded]
            self._note_damage(stream_id, ids, good, done)
            sizes = np.cumsum([len(loose.values) for _, loose in decoded])
            fitting = max(1, int(np.searchsorted(sizes, _MOST_LOOSE_SAMPLES, side="right")))
            taken = decoded[:fitting]
            if not taken:
                return []
            starts = np.concatenate(([0], sizes[: len(taken) - 1])).tolist()
            loose = LooseBlock(
                np.concatenate([np.full(len(one.values), row_id, dtype=np.int64) for row_id, one in taken]),
                np.concatenate([np.arange(len(one.values), dtype=np.int64) for _, one in taken]),
                np.concatenate([one.times_ms for _, one in taken]),
                np.concatenate([one.series_ids.astype(np.int64) for _, one in taken]),
                np.concatenate([one.values for _, one in taken]),
                np.concatenate([one.codes for _, one in taken]),
                {start + at: text for start, (_, one) in zip(starts, taken, strict=True)
                 for at, text in one.metadata.items()},
            )  # fmt: skip
            series = hand.store.catalogue.series(connection, np.unique(loose.series_ids).tolist())
        payload = encode_loose(loose, self._method)
        if not _is_same_loose(decode_loose_block(payload), loose):
            raise _not_the_same(stream_id)
        rolled_up = list(rollups_of_loose(loose, {number: stored.series for number, stored in series.items()}))
        sealed_ids = [row_id for row_id, _ in taken]
        with hand.writing() as connection:
            block = BlockRow(
                0, BlockKind.LOOSE, Tier.SEALED, stream_id, OWN_ORIGIN, 0,
                int(loose.times_ms.min(initial=1 << 62)), int(loose.times_ms.max(initial=-(1 << 62))),
                sealed_ids[0], sealed_ids[-1], len(sealed_ids), len(loose.values), 0, payload,
            )  # fmt: skip
            rollups = [
                rollup_row(
                    part.rollup, part.series, step_seconds=MINUTE_SECONDS, stream_id=stream_id, origin_id=OWN_ORIGIN,
                    layout_id=layout_of_series(connection, stream_id, part.series_ids, is_loose=True),
                    start_ms=part.start_ms, end_ms=part.end_ms, samples=part.samples, method=self._method,
                )
                for part in rolled_up
            ]  # fmt: skip
            _replace(connection, block, rollups, sealed_ids)
        done.blocks += 1
        done.samples += len(loose.values)
        return good[fitting:]

    def _note_damage(self, stream_id: int, ids: list[int], good: list[int], done: Sealed) -> None:
        bad = set(ids) - set(good)
        if bad:
            _LOG.warning("%d damaged rows of stream %d cannot be sealed and stay as they are", len(bad), stream_id)
            self._waiting[stream_id].damaged |= bad
            done.damaged += len(bad)


def method_of(config: PersistenceConfig, *, is_cold: bool = False) -> BlockMethod:
    """How blocks are compressed."""
    if not config.compression_enabled:
        return BlockMethod.STORED
    return BlockMethod.LZMA if is_cold else BlockMethod.ZLIB


def matrix_of_block(payload: bytes, series_ids: tuple[int, ...]) -> Matrix:
    """All that is in a block of scrapes.

    Raises:
        StoreDamagedError: When it cannot be read, or has not as many columns.
    """
    reader = block_reader(payload)
    if reader.column_count != len(series_ids):
        raise StoreDamagedError("a block has other columns than its layout", hint="Run vllm-monitor check.")
    columns = range(len(series_ids))
    return Matrix(series_ids, reader.times_ms(), reader.sequences(), reader.columns(columns), reader.present(columns))


def series_of(connection: Connection, hand: ShortTransactions, series_ids: Sequence[int]) -> list[Series]:
    """What the columns of a layout are; a series whose row is damaged gets a name that nothing else has."""
    known = hand.store.catalogue.series(connection, series_ids)
    return [known[number].series if number in known else Series(f"damaged:{number}") for number in series_ids]


def encode_loose(loose: LooseBlock, method: BlockMethod) -> bytes:
    """The payload of a block of single samples."""
    return encode_loose_block(
        loose.sequences, loose.positions, loose.times_ms, loose.series_ids, loose.values, loose.codes,
        loose.metadata, method=method,
    )  # fmt: skip


def _read(connection: Connection, ids: list[int]) -> list[MetricsRow]:
    found = []
    for at in range(0, len(ids), _IDS_PER_STATEMENT):
        query = select(_rows).where(_rows.c.id.in_(ids[at : at + _IDS_PER_STATEMENT])).order_by(_rows.c.id)
        found += [MetricsRow._make(row) for row in connection.execute(query)]
    return found


def _fitting(widths: list[int], layouts: list[tuple[int, ...]]) -> int:
    """How many of some scrapes go into one block: not too many cells, and not too many of them empty."""
    union: set[int] = set()
    known: set[int] = set()
    widest = 0
    for number, (width, layout) in enumerate(zip(widths, layouts, strict=True)):
        widest = max(widest, width)
        if id(layout) not in known:
            known.add(id(layout))
            union.update(layout)
        too_sparse = len(union) > 2 * widest + _SPARE_COLUMNS
        if number and (too_sparse or (number + 1) * max(widest, len(union)) > _MOST_CELLS):
            return number
    return len(widths)


def _replace(connection: Connection, block: BlockRow, rollups: list[RollupRow], ids: list[int]) -> None:
    """Insert what was made of hot rows, and delete them; inside one transaction.

    Raises:
        StoreUnavailableError: When some of the rows are gone already.
    """
    connection.execute(insert(schema.blocks), _values(block.summed()))
    if rollups:
        connection.execute(insert(schema.rollups), [_values(row) for row in rollups])
    gone = 0
    for at in range(0, len(ids), _IDS_PER_STATEMENT):
        gone += connection.execute(delete(_rows).where(_rows.c.id.in_(ids[at : at + _IDS_PER_STATEMENT]))).rowcount
    if gone != len(ids):
        raise StoreUnavailableError(
            "rows were sealed or deleted by somebody else at the same time",
            hint="It is tried again by itself; storage_dir must be on a file system with working locks.",
        )
    table = schema.store_meta
    epoch = connection.execute(select(table.c.value).where(table.c.key == EPOCH_KEY)).scalar_one()
    connection.execute(update(table).where(table.c.key == EPOCH_KEY).values(value=str(int(epoch) + 1)))


def _values(row: BlockRow | RollupRow) -> dict[str, object]:
    values = row._asdict()
    del values["id"]
    return values


def _let_stand_alone(connection: Connection, stream_id: int, sealed: dict[int, Bits]) -> None:
    """Rows that were stored as their difference from one that is sealed now are stored whole."""
    query = select(_rows).where(
        _rows.c.stream_id == stream_id, _rows.c.previous_id.between(min(sealed), max(sealed)), _rows.c.kind != LOOSE
    )
    for row in [MetricsRow._make(found) for found in connection.execute(query)]:
        before = sealed.get(row.previous_id)
        if before is None:
            continue
        expected = row_checksum(
            row.kind, row.stream_id, row.layout_id, row.previous_id, row.start_ms, row.end_ms, row.payload
        )
        if expected != row.checksum:
            continue  # damaged: it stays as it is
        payload = encode_scrape(decode_scrape(row.payload, len(before), before), None)
        checksum = row_checksum(KEYFRAME, row.stream_id, row.layout_id, 0, row.start_ms, row.end_ms, payload)
        connection.execute(
            update(_rows)
            .where(_rows.c.id == row.id)
            .values(kind=KEYFRAME, previous_id=0, payload=payload, checksum=checksum)
        )


def _is_same_loose(one: LooseBlock, other: LooseBlock) -> bool:
    return one.metadata == other.metadata and all(
        np.array_equal(mine.view(np.int64) if mine.dtype == np.float64 else mine, others)
        for mine, others in (
            (one.sequences, other.sequences),
            (one.positions, other.positions),
            (one.times_ms, other.times_ms),
            (one.series_ids, other.series_ids),
            (one.values, np.ascontiguousarray(other.values).view(np.int64)),
            (one.codes, other.codes),
        )
    )


def _not_the_same(stream_id: int) -> StoreDamagedError:
    return StoreDamagedError(
        f"a block of stream {stream_id} does not come back as the rows it was made of",
        hint="The rows stay as they are; report this with the store's statistics.",
    )
