"""What sealing and joining have in common: rows taken out of ``metrics``, blocks and roll-ups put in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from vllm_monitor.errors import StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.samples.block_rows import BlockRow, RollupRow
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod, block_reader
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, encode_loose_block
from vllm_monitor.persistence.samples.matrices import Matrix
from vllm_monitor.persistence.samples.sample_rows import MetricsRow
from vllm_monitor.persistence.samples.store_query import StoreQuery
from vllm_monitor.persistence.sql_store import EPOCH_KEY
from vllm_monitor.records import Series

__all__ = [
    "SealedPart",
    "encode_loose",
    "matrix_of_block",
    "method_of",
    "not_the_same",
    "read_rows",
    "replace_rows",
    "series_of",
]

_rows = schema.metrics
_BETWEEN = StoreQuery(
    select(_rows)
    .where(_rows.c.stream_id == bindparam("stream_id"), _rows.c.id.between(bindparam("first"), bindparam("last")))
    .order_by(_rows.c.id)
)


class SealedPart(NamedTuple):
    """What became of some hot rows: those sealed, those that can be read at all, and the samples sealed."""

    sealed_ids: list[int]
    readable_ids: list[int]
    samples: int


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


def read_rows(connection: Connection, stream_id: int, ids: list[int]) -> list[MetricsRow]:
    """Hot rows of a stream, in order of arrival; ``ids`` ascend."""
    wanted = set(ids)
    rows = _BETWEEN.rows(connection, stream_id=stream_id, first=ids[0], last=ids[-1])
    return [row for row in map(MetricsRow._make, rows) if row.id in wanted]


def replace_rows(connection: Connection, block: BlockRow, rollups: list[RollupRow], ids: list[int]) -> None:
    """Insert what was made of hot rows, and delete them; inside one transaction.

    Raises:
        StoreUnavailableError: When some of the rows are gone already.
    """
    connection.execute(insert(schema.blocks), _values(block.summed()))
    if rollups:
        connection.execute(insert(schema.rollups), [_values(row) for row in rollups])
    stretches = _stretches(ids)
    deleting = delete(_rows).where(_rows.c.id.between(bindparam("first"), bindparam("last")))
    gone = connection.execute(deleting, [{"first": first, "last": last} for first, last in stretches]).rowcount
    if gone != len(ids):
        raise StoreUnavailableError(
            "rows were sealed or deleted by somebody else at the same time",
            hint="It is tried again by itself; storage_dir must be on a file system with working locks.",
        )
    table = schema.store_meta
    epoch = connection.execute(select(table.c.value).where(table.c.key == EPOCH_KEY)).scalar_one()
    connection.execute(update(table).where(table.c.key == EPOCH_KEY).values(value=str(int(epoch) + 1)))


def _stretches(ids: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers without gaps, as first and last: often one statement instead of thousands."""
    numbers = np.array(ids)
    ends = np.flatnonzero(np.diff(numbers) != 1)
    firsts, lasts = numbers[np.append(0, ends + 1)], numbers[np.append(ends, len(ids) - 1)]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _values(row: BlockRow | RollupRow) -> dict[str, object]:
    values = row._asdict()
    del values["id"]
    return values


def not_the_same(stream_id: int) -> StoreDamagedError:
    """The error of a block that was decoded to something else."""
    return StoreDamagedError(
        f"a block of stream {stream_id} does not come back as the rows it was made of",
        hint="The rows stay as they are; report this with the store's statistics.",
    )
