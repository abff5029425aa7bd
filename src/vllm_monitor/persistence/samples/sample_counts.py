"""How many samples a store holds, without reading them."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, func, select

from vllm_monitor.persistence import schema

__all__ = ["NO_SAMPLES", "SampleCounts", "count_samples"]


class SampleCounts(NamedTuple):
    """What is stored of samples; times are unix milliseconds, ``None`` when there is nothing."""

    samples: int
    hot_rows: int
    blocks: int
    rollups: int
    oldest_ms: int | None
    newest_ms: int | None


NO_SAMPLES = SampleCounts(0, 0, 0, 0, None, None)


def count_samples(connection: Connection) -> SampleCounts:
    """Count from what rows say of themselves."""
    metrics, blocks, rollups = schema.metrics, schema.blocks, schema.rollups
    counts = []
    times: list[int | None] = []
    for table, samples in ((metrics, metrics.c.samples), (blocks, blocks.c.samples), (rollups, rollups.c.samples)):
        query = select(
            func.coalesce(func.sum(samples), 0), func.count(), func.min(table.c.start_ms), func.max(table.c.end_ms)
        )
        number, rows, oldest, newest = connection.execute(query).one()
        counts.append((int(number), int(rows)))
        times += [oldest, newest]
    (hot, hot_rows), (sealed, block_rows), (_, rollup_rows) = counts
    known = [time_ms for time_ms in times if time_ms is not None]
    return SampleCounts(
        hot + sealed, hot_rows, block_rows, rollup_rows, min(known, default=None), max(known, default=None)
    )
