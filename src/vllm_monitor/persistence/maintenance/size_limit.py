"""Retention by size: the oldest goes until the store fits into ``max_bytes``, and the file is made smaller.

What goes, in this order, until it fits: blocks of samples, oldest first whatever their target; roll-ups of 1 minute;
roll-ups of 10 minutes; request summaries. Samples of the last hour, which are not sealed yet, and rare records never
go; neither do documents and models. So that a store full of those does not lose its history for nothing, a quarter of
``max_bytes`` is for the newest blocks and roll-ups, even when the store is then larger than it may be; health says so.
The limit holds for the database, its log and the folder of models together. Room for the log is kept free, and
a tenth more than needed is deleted, so that it is not all to be done again a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, or_, select, true

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.sql_store import SqlStore

__all__ = ["excess_bytes", "fit_into_limit", "models_bytes", "shrink"]

_LOG_BYTES = 5 << 20
"""SQLite moves its log into the file after a thousand pages; a group of scrapes may come on top of it."""
_LARGEST_LOG_SHARE = 0.25
_GOAL_RATIO = 0.9
_KEPT_SHARE = 4
"""This part of ``max_bytes`` is for the newest samples, whatever else fills the store; half of it for roll-ups."""
_ROWS_PER_STEP = 20
_CANDIDATES = 2_000
_SPARE_PAGES = 256
_SPARE_SHARE = 16
_PAGES_PER_STEP = 512


def fit_into_limit(hand: ShortTransactions, config: PersistenceConfig) -> dict[str, int]:
    """Delete the oldest until the store fits into ``max_bytes``; what was deleted, as ``retention.expire`` counts."""
    deleted: dict[str, int] = {}
    if config.max_bytes is None or _content_bytes(hand, config) <= _room_bytes(config.max_bytes):
        return deleted
    goal = int(_room_bytes(config.max_bytes) * _GOAL_RATIO)
    parts = list(_in_order())
    for (table, counted, time, conditions), older in zip(parts, _older(hand, config.max_bytes, parts), strict=True):
        batches = _oldest_first(hand, table, time, [*conditions, older])

        def step(table: Table = table, counted: Any = counted, batches: Iterator[list[int]] = batches) -> int | None:
            if _content_bytes(hand, config) <= goal:
                return None
            numbers = next(batches, None)
            return None if numbers is None else _delete(hand, table, counted, numbers)

        deleted[table.name] = deleted.get(table.name, 0) + hand.repeat(step)
    return {"metrics" if name == "blocks" else name: number for name, number in deleted.items()}


def excess_bytes(hand: ShortTransactions, config: PersistenceConfig) -> int:
    """By how much the store's content is over the limit; 0 when it fits or there is none."""
    if config.max_bytes is None:
        return 0
    return max(0, _content_bytes(hand, config) - _room_bytes(config.max_bytes))


def models_bytes(hand: ShortTransactions) -> int:
    """What the arrays of models take, in files or in the database."""
    with hand.reading() as connection:
        return int(connection.execute(select(func.coalesce(func.sum(schema.models.c.size_bytes), 0))).scalar_one())


def shrink(
    store: SqlStore,
    config: PersistenceConfig,
    *,
    everything: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Give free pages back to the file system, then empty the log; the bytes by which file and log became smaller.

    Pages are moved some hundred at a time, in transactions of their own. A few free pages are no reason to move any:
    sealing frees and uses them all the time. The log is emptied when no reader needs it, without ever waiting for one.
    A file that was not made for it (``auto_vacuum`` is not ``INCREMENTAL``) keeps its size and uses the pages again.

    Args:
        store: The store; any thread.
        config: Settings.
        everything: Also a few free pages: what was there is gone for good.
        should_stop: Asked between transactions.

    Raises:
        StoreUnavailableError: When the store was closed meanwhile.
        sqlite3.Error, DBAPIError: As ``sqlite_file.fault_of`` tells them apart.
    """
    hand = ShortTransactions(store, should_stop)
    before = store.size_bytes()
    with hand.reading() as connection:
        pages, free = _pragma(connection, "page_count"), _pragma(connection, "freelist_count")
        page_bytes, mode = _pragma(connection, "page_size"), _pragma(connection, "auto_vacuum")
    is_tight = config.max_bytes is not None and pages * page_bytes > _room_bytes(config.max_bytes)
    if mode == _INCREMENTAL and free > (0 if is_tight or everything else max(_SPARE_PAGES, pages // _SPARE_SHARE)):
        hand.repeat(lambda: _give_pages_back(hand))
    _empty_log(store)
    return max(0, before - store.size_bytes())


_INCREMENTAL = 2
_Part = tuple[Table, ColumnElement[Any], ColumnElement[Any], list[ColumnElement[bool]]]


def _room_bytes(max_bytes: int) -> int:
    return max_bytes - int(min(_LOG_BYTES, max_bytes * _LARGEST_LOG_SHARE))


def _content_bytes(hand: ShortTransactions, config: PersistenceConfig) -> int:
    """Pages in use, and models. Free pages do not count: they are used again, or given back."""
    with hand.reading() as connection:
        pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
        size_bytes = pages * _pragma(connection, "page_size")
    folder = config.storage_dir / config.models_dir
    return size_bytes + sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_order() -> Iterator[_Part]:
    """Table, what is counted of a row, the time by which it is old, and which rows are meant."""
    blocks, rollups, requests = schema.blocks, schema.rollups, schema.requests
    yield blocks, blocks.c.samples, blocks.c.end_ms, []
    for step_seconds in (60, 600):
        yield rollups, rollups.c.buckets, rollups.c.end_ms, [rollups.c.step_seconds == step_seconds]
    yield requests, func.length(requests.c.checksum) > 0, requests.c.timestamp, []


def _oldest_first(
    hand: ShortTransactions, table: Table, time: ColumnElement[Any], conditions: list[ColumnElement[bool]]
) -> Iterator[list[int]]:
    """Ids of the oldest rows, some at a time. The query needs columns of an index alone, never a payload."""
    query = select(table.c.id).where(*conditions).order_by(time, table.c.id).limit(_CANDIDATES)
    while True:
        with hand.reading() as connection:
            numbers = list(connection.execute(query).scalars())
        if not numbers:
            return
        for start in range(0, len(numbers), _ROWS_PER_STEP):
            yield numbers[start : start + _ROWS_PER_STEP]


def _older(hand: ShortTransactions, max_bytes: int, parts: Sequence[_Part]) -> list[ColumnElement[bool]]:
    """For each part which of its rows may go: those older than what is kept. The coarsest roll-ups are kept first."""
    left_bytes = max_bytes // _KEPT_SHARE
    conditions = []
    for table, _, time, chosen in reversed(parts):
        last = None
        if "payload" in table.c:
            least_left_bytes = 0 if table is schema.blocks else max_bytes // _KEPT_SHARE // 2
            last, left_bytes = _last_kept(hand, table, time, chosen, left_bytes, least_left_bytes)
        is_older: ColumnElement[bool] = true()
        if last is not None:
            is_older = or_(time < last[0], and_(time == last[0], table.c.id < last[1]))
        conditions.append(is_older)
    return conditions[::-1]


def _last_kept(
    hand: ShortTransactions,
    table: Table,
    time: ColumnElement[Any],
    conditions: list[ColumnElement[bool]],
    left_bytes: int,
    least_left_bytes: int,
) -> tuple[tuple[int, int] | None, int]:
    """Time and id of the oldest of the newest rows that fit, and the bytes that are left then."""
    query = select(time, table.c.id, func.length(table.c.payload)).where(*conditions)
    last = None
    with hand.reading() as connection:
        for end_ms, number, payload_bytes in connection.execute(query.order_by(time.desc(), table.c.id.desc())):
            if left_bytes - payload_bytes < least_left_bytes:
                break
            left_bytes -= payload_bytes
            last = (end_ms, number)
    return last, left_bytes


def _delete(hand: ShortTransactions, table: Table, counted: ColumnElement[Any], numbers: list[int]) -> int:
    chosen = table.c.id.in_(numbers)
    with hand.writing() as connection:
        total = connection.execute(select(func.coalesce(func.sum(counted), 0)).where(chosen)).scalar_one()
        connection.execute(delete(table).where(chosen))
    return int(total)


def _give_pages_back(hand: ShortTransactions) -> int | None:
    hand.run_script(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
    with hand.reading() as connection:
        return None if _pragma(connection, "freelist_count") == 0 else 0


def _empty_log(store: SqlStore) -> None:
    connection = store.connect()
    try:
        raw = connection.connection.dbapi_connection
        if raw is None:  # pragma: no cover - SQLAlchemy connects on first use of .connection
            return
        cursor = raw.cursor()
        (patience_ms,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        # Nearly all is moved without any lock that a writer needs; what TRUNCATE does under such a lock is then
        # little, and it gives up at once when somebody is in the way.
        cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        cursor.execute("PRAGMA busy_timeout=0").fetchall()
        try:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            cursor.execute(f"PRAGMA busy_timeout={int(patience_ms)}").fetchall()
    finally:
        store.release(connection)


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
