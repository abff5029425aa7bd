"""Sealed blocks as readers see them: found by time, and read a stream at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Table, bindparam, func, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, decode_loose_block
from vllm_monitor.persistence.samples.blocks.reader import BlockReader
from vllm_monitor.persistence.samples.read_cache import ReadCache
from vllm_monitor.persistence.samples.store_query import StoreQuery

__all__ = [
    "BlockColumns",
    "BlockHead",
    "OpenBlock",
    "block_heads",
    "block_row",
    "check_times",
    "newest_block_heads",
    "open_block",
    "open_loose",
    "open_payload",
    "read_columns",
]

_SMALL_BYTES = 16_384
"""Payloads up to this size are read at once: two pages of SQLite's would be read anyway."""

_table = schema.blocks
_HEAD = [column for column in _table.c if column.name != "payload"]
_OVERLAPPING = select(*_HEAD, func.length(_table.c.payload)).where(
    _table.c.stream_id == bindparam("stream_id"),
    _table.c.start_ms <= bindparam("end_ms"),
    _table.c.end_ms >= bindparam("start_ms"),
)
_IN_ORDER = StoreQuery(_OVERLAPPING.order_by(_table.c.start_ms, _table.c.id))
_NEWEST_FIRST = StoreQuery(_OVERLAPPING.order_by(_table.c.end_ms.desc(), _table.c.id.desc()))
_PAYLOAD = {
    table.name: StoreQuery(select(table.c.payload).where(table.c.id == bindparam("id")))
    for table in (schema.blocks, schema.rollups)
}
_WHOLE = StoreQuery(select(_table).where(_table.c.id == bindparam("id")))


class BlockHead(NamedTuple):
    """A row of ``blocks`` without its payload; see ``BlockRow``."""

    id: int
    kind: int
    tier: int
    stream_id: int
    origin_id: int
    layout_id: int
    start_ms: int
    end_ms: int
    first_sequence: int
    last_sequence: int
    scrapes: int
    samples: int
    checksum: int
    payload_bytes: int


def block_heads(connection: Connection, stream_id: int, start_ms: int, end_ms: int) -> list[BlockHead]:
    """Blocks of a stream with times in a range (inclusive), by their first time."""
    rows = _IN_ORDER.rows(connection, stream_id=stream_id, start_ms=start_ms, end_ms=end_ms)
    return [BlockHead._make(row) for row in rows]


def newest_block_heads(connection: Connection, stream_id: int, start_ms: int, end_ms: int) -> list[BlockHead]:
    """The same, by their last time, newest first."""
    rows = _NEWEST_FIRST.rows(connection, stream_id=stream_id, start_ms=start_ms, end_ms=end_ms)
    return [BlockHead._make(row) for row in rows]


def block_row(connection: Connection, block_id: int) -> BlockRow:
    """A whole row of ``blocks``, its checksum verified.

    Raises:
        StoreDamagedError: When it does not match its checksum, or is not there.
    """
    rows = _WHOLE.rows(connection, id=block_id)
    if not rows:
        raise StoreDamagedError(f"block {block_id} is missing", hint="Run vllm-monitor check.")
    row = BlockRow._make(rows[0])
    if not isinstance(row.payload, bytes):
        raise _not_what_it_says(f"block {block_id}")
    row.verify()
    return row


@contextmanager
def open_payload(connection: Connection, table: Table, row_id: int, size: int) -> Iterator[Callable[[int, int], bytes]]:
    """A function ``read(offset, length)`` over the payload of a row, which reads no more than it is asked for.

    The one place that knows how a database reads a part of a large value.
    """
    if size <= _SMALL_BYTES:
        ((payload,),) = _PAYLOAD[table.name].rows(connection, id=row_id)
        if not isinstance(payload, bytes):
            raise _not_what_it_says(f"row {row_id} of {table.name}")
        yield lambda offset, length: payload[offset : offset + length]
        return
    raw: Any = connection.connection.dbapi_connection
    with raw.blobopen(table.name, "payload", row_id, readonly=True) as blob:

        def read(offset: int, length: int) -> bytes:
            blob.seek(offset)
            return bytes(blob.read(length))

        yield read


class BlockColumns(NamedTuple):
    """Some columns of a block of scrapes; shared by readers, so nothing in it can be written.

    Args:
        times_ms: (rows,), unix milliseconds.
        values: For each column (rows,) float64.
        present: For each column (rows,), where it has samples; ``None`` where it has them in every row.
    """

    times_ms: NDArray[np.int64]
    values: list[NDArray[np.float64]]
    present: list[NDArray[np.bool_] | None]


class OpenBlock(NamedTuple):
    """A block of scrapes that is being read."""

    head: BlockHead
    reader: BlockReader


@contextmanager
def open_block(connection: Connection, head: BlockHead, column_count: int) -> Iterator[OpenBlock]:
    """A block of scrapes, to be read a column at a time.

    Raises:
        StoreDamagedError: When its form contradicts the columns of its row.
    """
    with open_payload(connection, _table, head.id, head.payload_bytes) as read:
        reader = BlockReader(read, head.payload_bytes)
        if head.kind != BlockKind.SCRAPES or reader.rows != head.scrapes or reader.column_count != column_count:
            raise _not_what_it_says(f"block {head.id}")
        yield OpenBlock(head, reader)


def read_columns(
    connection: Connection, cache: ReadCache, head: BlockHead, column_count: int, wanted: Sequence[int]
) -> BlockColumns:
    """Some columns of a block of scrapes, those that were read before from memory.

    Raises:
        StoreDamagedError: When the block is damaged, or contradicts the columns of its row.
    """
    key = "blocks", head.id, head.checksum
    times = cache.get(key)
    found = {column: cache.get((*key, column)) for column in wanted}
    missing = [column for column, known in found.items() if known is None]
    if missing or times is None:
        with open_block(connection, head, column_count) as block:
            times = block.reader.times_ms()
            check_times(head, times)
            values = block.reader.columns(missing).view(np.float64)
            present = block.reader.present(missing)
        cache.put(key, times, _freeze(times))
        for place, column in enumerate(missing):
            there = None if present is None or present[:, place].all() else present[:, place].copy()
            found[column] = known = values[:, place].copy(), there  # not a part of something larger
            cache.put((*key, column), known, _freeze(*known))
    columns = [found[column] for column in wanted]
    return BlockColumns(times, [values for values, _ in columns], [present for _, present in columns])


def _freeze(*arrays: NDArray[Any] | None) -> int:
    """Let nobody write them; their bytes."""
    size = 0
    for array in arrays:
        if array is not None:
            array.setflags(write=False)
            size += array.nbytes
    return size


def open_loose(connection: Connection, head: BlockHead) -> LooseBlock:
    """A block of single samples.

    Raises:
        StoreDamagedError: When it is damaged.
    """
    row = block_row(connection, head.id)
    if row.kind != BlockKind.LOOSE:
        raise _not_what_it_says(f"block {head.id}")
    return decode_loose_block(row.payload)


def check_times(head: BlockHead, times_ms: NDArray[np.int64]) -> None:
    """Compare times with what the row says of them.

    Raises:
        StoreDamagedError: When they differ: the row is damaged.
    """
    if len(times_ms) and (int(times_ms.min()) != head.start_ms or int(times_ms.max()) != head.end_ms):
        raise StoreDamagedError(f"block {head.id} has other times than its row says", hint="Run vllm-monitor check.")


def _not_what_it_says(what: str) -> StoreDamagedError:
    return StoreDamagedError(f"{what} is not what its columns say", hint="Run vllm-monitor check.")
