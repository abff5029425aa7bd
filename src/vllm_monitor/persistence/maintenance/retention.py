"""Retention by age: what has become too old is deleted, a little at a time.

====================================  ===============================================================================
what                                  is deleted
====================================  ===============================================================================
blocks of samples                     when their newest sample is older than ``metrics_retention_days``
hot rows of samples                   when they were sealed; one that could not be sealed (damaged), when it is as old
roll-ups of 1 and of 10 minutes       when their newest bucket is older than their own retention
predictions                           leave daily counts behind (``prediction_scores``)
happy paths                           by the time of their last change
other records                         by their time
====================================  ===============================================================================

Names (targets, streams, series, layouts) stay: a row is small, the same names come back, and writers remember their
numbers, so that removing one would need all writers to agree. ``None`` keeps a type for ever; failure patterns, models
and documents have no age.

Ages count from the time that ``retention_clock`` believes, so that a clock that is set wrong deletes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, update

from vllm_monitor.clock import SystemClock
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.json_backend.json_expiry import delete_unsealed_rows
from vllm_monitor.persistence.maintenance.retention_clock import doubtful_step_seconds, look_at_clock
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.maintenance.size_limit import excess_bytes, fit_into_limit, models_bytes, shrink
from vllm_monitor.persistence.records.prediction_scores import fold_predictions
from vllm_monitor.persistence.sql_store import EPOCH_KEY, OWN_ORIGIN, SqlStore

__all__ = ["cutoff_ms", "expire", "retention_trouble", "shrink"]

_DAY_SECONDS = 86_400.0
_ROWS_PER_STEP = 200
_PAYLOAD_BYTES_PER_STEP = 4 << 20
_HOT_ROWS_LOOKED_AT = 5_000
_EARLIEST_MS = -(1 << 62)
_MINUTE_STEPS = (60, 600)


def expire(
    store: SqlStore,
    config: PersistenceConfig,
    now_seconds: float,
    *,
    monotonic_seconds: float | None = None,
    asked: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Delete what is too old, then the oldest samples until the store fits into ``config.max_bytes``.

    Works on its own connections, in transactions of at most 200 rows and some 4 MB, with rests between them. The caller
    holds the maintenance lock of the store; the file shrinks with :func:`shrink`.

    Args:
        store: The store; any thread.
        config: Settings.
        now_seconds: Unix seconds of the wall clock, which need not be right.
        monotonic_seconds: Seconds of the monotonic clock; ``None`` reads that of the host.
        asked: A person asked for it, so a step of the clock by up to a year is believed (see ``retention_clock``).
        should_stop: Asked between transactions; what is left is deleted the next time.

    Returns:
        What was deleted: ``metrics`` in samples, ``rollups`` in buckets, records by the name of their table.

    Raises:
        StoreUnavailableError: When the store was closed meanwhile.
        sqlite3.Error, DBAPIError: As ``sqlite_file.fault_of`` tells them apart.
    """
    hand = ShortTransactions(store, should_stop)
    monotonic = SystemClock().monotonic() if monotonic_seconds is None else monotonic_seconds
    now = look_at_clock(hand, now_seconds, monotonic, asked=asked)
    deleted = {
        "metrics": _expire_samples(hand, cutoff_ms(now, config.metrics_retention_days)),
        "rollups": 0,
    }
    rollup_days = (config.minute_rollup_retention_days, config.ten_minute_rollup_retention_days)
    for step_seconds, days in zip(_MINUTE_STEPS, rollup_days, strict=True):
        is_step = schema.rollups.c.step_seconds == step_seconds
        deleted["rollups"] += _expire_sealed(
            hand, schema.rollups, schema.rollups.c.buckets, cutoff_ms(now, days), is_step
        )
    for table, kept_days in _record_days(config):
        deleted[table.name] = 0 if kept_days is None else _expire_records(hand, table, now - kept_days * _DAY_SECONDS)
    for name, number in fit_into_limit(hand, config).items():
        deleted[name] = deleted.get(name, 0) + number
    return deleted


def retention_trouble(store: SqlStore, config: PersistenceConfig) -> tuple[str, str] | None:
    """What a person should know about retention: a message and a hint; ``None`` when all is well.

    Raises:
        StoreUnavailableError: When the store was closed meanwhile.
        sqlite3.Error, DBAPIError: As ``sqlite_file.fault_of`` tells them apart.
    """
    hand = ShortTransactions(store, lambda: False)
    too_much = excess_bytes(hand, config)
    if too_much:
        models = models_bytes(hand)
        message = f"the store needs {too_much:,} bytes more than max_bytes leaves it beside its log"
        return (
            f"{message}; models take {models:,} bytes of it" if models else message,
            "Only the newest samples are left: raise max_bytes, delete models, or keep rare records for less long.",
        )
    with hand.reading() as connection:
        step_seconds = doubtful_step_seconds(connection)
    if step_seconds > 0:
        return (
            f"the clock is {step_seconds / _DAY_SECONDS:,.1f} days ahead of the time by which data expire",
            "Set the clock if it is wrong; otherwise nothing is to be done: it is believed after a day.",
        )
    return None


def _record_days(config: PersistenceConfig) -> list[tuple[Table, float | None]]:
    return [
        (schema.checkpoints, config.checkpoint_retention_days),
        (schema.predictions, config.prediction_retention_days),
        (schema.mitigation_attempts, config.attempt_retention_days),
        (schema.alerts, config.alert_retention_days),
        (schema.events, config.event_retention_days),
        (schema.requests, config.request_retention_days),
        (schema.happy_paths, config.happy_path_retention_days),
        (schema.learning_data, config.learning_retention_days),
    ]


def cutoff_ms(now: float, days: float) -> int:
    """Unix milliseconds before which something is older than so many days."""
    return int(max(_EARLIEST_MS, (now - days * _DAY_SECONDS) * 1000))


def _expire_samples(hand: ShortTransactions, cutoff_ms: int) -> int:
    # Before the blocks, which show what sealing has passed over.
    delete_rows = _delete_left_over_rows if hand.store.seals else delete_unsealed_rows
    left_over = hand.repeat(lambda: delete_rows(hand, cutoff_ms))
    return left_over + _expire_sealed(hand, schema.blocks, schema.blocks.c.samples, cutoff_ms)


def _expire_sealed(
    hand: ShortTransactions, table: Table, counted: ColumnElement[int], cutoff_ms: int, *conditions: ColumnElement[bool]
) -> int:
    """Delete rows of ``blocks`` or ``rollups`` that lie wholly before the cut-off; the sum of what they counted."""
    is_old = (table.c.start_ms < cutoff_ms) & (table.c.end_ms < cutoff_ms)
    # First from the index alone: it has all of these columns, and the table has large rows.
    query = select(table.c.id).where(is_old, *conditions).limit(_ROWS_PER_STEP)

    def step() -> int | None:
        numbers, total, size_bytes = [], 0, 0
        with hand.reading() as connection:
            found = list(connection.execute(query).scalars())
            details = select(table.c.id, counted, func.length(table.c.payload)).where(table.c.id.in_(found))
            for number, count, payload_bytes in connection.execute(details):
                numbers.append(number)
                total += count
                size_bytes += payload_bytes
                if size_bytes > _PAYLOAD_BYTES_PER_STEP:
                    break
        if not numbers:
            return None
        with hand.writing() as connection:
            connection.execute(delete(table).where(table.c.id.in_(numbers), is_old))
        return total

    return hand.repeat(step)


def _delete_left_over_rows(hand: ShortTransactions, cutoff_ms: int) -> int | None:
    """Delete old hot rows that sealing has passed over.

    Rows that still wait to be sealed are left alone, however old their times: they become roll-ups first. A row that
    a newer one builds on stays until that one goes, and writers begin new runs afterwards.
    """
    rows = schema.metrics
    with hand.reading() as connection:
        numbers = _passed_over(connection, cutoff_ms)
    if not numbers:
        return None
    query = select(rows.c.id, rows.c.stream_id, rows.c.previous_id, rows.c.samples).where(
        rows.c.id.in_(numbers), rows.c.end_ms < cutoff_ms
    )
    with hand.writing() as connection:
        found = {row.id: row for row in connection.execute(query)}
        users = select(rows.c.previous_id).where(
            rows.c.stream_id.in_({row.stream_id for row in found.values()}), rows.c.id.not_in(found)
        )
        needed = set(connection.execute(users).scalars())
        for number in sorted(found, reverse=True):  # what a needed row builds on is older, and needed as well
            if number in needed:
                needed.add(found[number].previous_id)
        gone = [row for number, row in found.items() if number not in needed]
        if not gone:
            return None
        connection.execute(delete(rows).where(rows.c.id.in_([row.id for row in gone])))
        _begin_new_runs(connection)
    return sum(int(row.samples) for row in gone)


def _passed_over(connection: Connection, cutoff_ms: int) -> list[int]:
    """Ids of old hot rows that are older than the newest block of their stream, newest first."""
    rows, blocks = schema.metrics, schema.blocks
    query = select(rows.c.id, rows.c.stream_id).where(rows.c.start_ms < cutoff_ms).limit(_HOT_ROWS_LOOKED_AT)
    old = connection.execute(query).all()
    sealed_up_to = (
        select(blocks.c.stream_id, func.max(blocks.c.first_sequence).label("newest"))
        .where(blocks.c.origin_id == OWN_ORIGIN, blocks.c.stream_id.in_({row.stream_id for row in old}))
        .group_by(blocks.c.stream_id)
    )
    limits = {row.stream_id: row.newest for row in connection.execute(sealed_up_to)} if old else {}
    passed = sorted((row.id for row in old if row.id < limits.get(row.stream_id, 0)), reverse=True)
    return passed[:_ROWS_PER_STEP]


def _begin_new_runs(connection: Connection) -> None:
    """Make every writer store its next scrapes whole: what they would be compared with may be gone."""
    table = schema.store_meta
    epoch = connection.execute(select(table.c.value).where(table.c.key == EPOCH_KEY)).scalar_one()
    connection.execute(update(table).where(table.c.key == EPOCH_KEY).values(value=str(int(epoch) + 1)))


def _expire_records(hand: ShortTransactions, table: Table, cutoff: float) -> int:
    if table is schema.predictions:
        return _expire_predictions(hand, cutoff)
    time: ColumnElement[Any] = table.c.timestamp
    if table is schema.happy_paths:
        time = func.coalesce(table.c.updated_at, table.c.timestamp)
    query = select(table.c.id).where(time < cutoff).limit(_ROWS_PER_STEP)

    def step() -> int | None:
        with hand.reading() as connection:
            numbers = list(connection.execute(query).scalars())
        if not numbers:
            return None
        with hand.writing() as connection:
            # The time again: a record may have been changed since.
            gone = connection.execute(delete(table).where(table.c.id.in_(numbers), time < cutoff))
        return int(gone.rowcount)

    return hand.repeat(step)


def _expire_predictions(hand: ShortTransactions, cutoff: float) -> int:
    table = schema.predictions

    def step() -> int | None:
        with hand.reading() as connection:
            if connection.execute(select(table.c.id).where(table.c.timestamp < cutoff).limit(1)).first() is None:
                return None
        with hand.writing() as connection:
            return fold_predictions(connection, cutoff, most=_ROWS_PER_STEP) or None

    return hand.repeat(step)
