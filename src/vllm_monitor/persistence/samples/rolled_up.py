"""Roll-ups as readers see them: found by time, a column at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.samples.block_access import open_payload
from vllm_monitor.persistence.samples.read_cache import ReadCache
from vllm_monitor.persistence.samples.rollup_codec import Rollup, RollupReader
from vllm_monitor.persistence.samples.store_query import StoreQuery

__all__ = ["RollupHead", "first_raw_ms", "first_rollup_ms", "open_rollup", "read_rollup", "rollup_heads"]

_table = schema.rollups
_OVERLAPPING = StoreQuery(
    select(
        _table.c.id,
        _table.c.step_seconds,
        _table.c.layout_id,
        _table.c.start_ms,
        _table.c.end_ms,
        _table.c.checksum,
        func.length(_table.c.payload),
    )
    .where(
        _table.c.stream_id == bindparam("stream_id"),
        _table.c.step_seconds == bindparam("step_seconds"),
        _table.c.start_ms <= bindparam("end_ms"),
        _table.c.end_ms >= bindparam("start_ms"),
    )
    .order_by(_table.c.start_ms, _table.c.id)
)
_FIRST = StoreQuery(
    select(func.min(_table.c.start_ms)).where(
        _table.c.stream_id == bindparam("stream_id"), _table.c.step_seconds == bindparam("step_seconds")
    )
)
_FIRST_BLOCK, _FIRST_ROW = (
    StoreQuery(select(func.min(table.c.start_ms)).where(table.c.stream_id == bindparam("stream_id")))
    for table in (schema.blocks, schema.metrics)
)


class RollupHead(NamedTuple):
    """A row of ``rollups`` without its payload; see ``RollupRow``."""

    id: int
    step_seconds: int
    layout_id: int
    start_ms: int
    end_ms: int
    checksum: int
    payload_bytes: int


def rollup_heads(
    connection: Connection, stream_id: int, step_seconds: int, start_ms: int, end_ms: int
) -> list[RollupHead]:
    """Roll-ups of a stream with samples in a range (inclusive), by their first time."""
    rows = _OVERLAPPING.rows(
        connection, stream_id=stream_id, step_seconds=step_seconds, start_ms=start_ms, end_ms=end_ms
    )
    return [RollupHead._make(row) for row in rows]


def first_rollup_ms(connection: Connection, stream_id: int, step_seconds: int) -> int | None:
    """The first time of the roll-ups of a stream."""
    ((first,),) = _FIRST.rows(connection, stream_id=stream_id, step_seconds=step_seconds)
    return None if first is None else int(first)


def first_raw_ms(connection: Connection, stream_id: int) -> int | None:
    """The first time of the samples of a stream that are still there one by one."""
    found = [query.rows(connection, stream_id=stream_id)[0][0] for query in (_FIRST_BLOCK, _FIRST_ROW)]
    return min((first for first in found if first is not None), default=None)


@contextmanager
def open_rollup(connection: Connection, head: RollupHead, column_count: int) -> Iterator[RollupReader]:
    """A roll-up, to be read a column at a time.

    Raises:
        StoreDamagedError: When its form contradicts the columns of its row.
    """
    with open_payload(connection, _table, head.id, head.payload_bytes) as read:
        reader = RollupReader(read, head.payload_bytes)
        if len(reader.forms) != column_count:
            raise StoreDamagedError(f"roll-up {head.id} is not what its row says", hint="Run vllm-monitor check.")
        yield reader


def read_rollup(
    connection: Connection, cache: ReadCache, head: RollupHead, column_count: int, wanted: tuple[int, ...]
) -> Rollup:
    """Some columns of a roll-up, from memory when they were read before; not to be changed.

    Raises:
        StoreDamagedError: When it is damaged, or contradicts the columns of its row.
    """
    key = "rollups", head.id, head.checksum, wanted
    known: Rollup | None = cache.get(key)
    if known is None:
        with open_rollup(connection, head, column_count) as reader:
            known = reader.read(wanted)
        cache.put(key, known, known.size_bytes())
    return known
