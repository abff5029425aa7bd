"""Retention of samples in a store that does not seal them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.samples.scrape_codec import KEYFRAME, LOOSE
from vllm_monitor.persistence.sql_store import EPOCH_KEY

__all__ = ["delete_unsealed_rows"]

_ROWS_PER_STEP = 200


def delete_unsealed_rows(hand: ShortTransactions, cutoff_ms: int) -> int | None:
    """Delete some rows of samples that are wholly older than a time; the number of samples, ``None`` when none is.

    A row that a newer one builds on stays until that one goes. The writer begins new runs afterwards.
    """
    rows = schema.metrics
    with hand.reading() as connection:
        numbers = _some_old_rows(connection, cutoff_ms)
    if not numbers:
        return None
    with hand.writing() as connection:
        # Again: the writer may have gone on from one of them meanwhile.
        numbers = _some_old_rows(connection, cutoff_ms)
        query = select(func.sum(rows.c.samples)).where(rows.c.id.in_(numbers))
        samples = connection.execute(query).scalar()
        connection.execute(delete(rows).where(rows.c.id.in_(numbers)))
        table = schema.store_meta
        epoch = connection.execute(select(table.c.value).where(table.c.key == EPOCH_KEY)).scalar_one()
        connection.execute(update(table).where(table.c.key == EPOCH_KEY).values(value=str(int(epoch) + 1)))
    return int(samples or 0)


def _some_old_rows(connection: Connection, cutoff_ms: int) -> list[int]:
    rows = schema.metrics
    is_old = (rows.c.start_ms < cutoff_ms) & (rows.c.end_ms < cutoff_ms)
    numbers: list[int] = []
    runs = select(rows.c.stream_id, rows.c.layout_id, rows.c.kind == LOOSE).where(is_old).distinct()
    for stream_id, layout_id, is_loose in connection.execute(runs).all():
        of_run = (rows.c.stream_id == stream_id) & (rows.c.layout_id == layout_id)
        query = select(rows.c.id).where(is_old, of_run).order_by(rows.c.id).limit(_ROWS_PER_STEP - len(numbers))
        if not is_loose and (needed_from := _needed_from(connection, of_run, cutoff_ms)) is not None:
            query = query.where(rows.c.id < needed_from)
        numbers += connection.execute(query).scalars()
        if len(numbers) >= _ROWS_PER_STEP:
            break
    return numbers


def _needed_from(connection: Connection, of_run: ColumnElement[bool], cutoff_ms: int) -> int | None:
    """The keyframe on which the first row builds that is not old; ``None`` when all are old."""
    rows = schema.metrics
    first = connection.execute(select(func.min(rows.c.id)).where(of_run, rows.c.end_ms >= cutoff_ms)).scalar()
    if first is None:
        return None
    keyframes = select(func.max(rows.c.id)).where(of_run, rows.c.kind == KEYFRAME, rows.c.id <= first)
    return int(connection.execute(keyframes).scalar() or 0)
