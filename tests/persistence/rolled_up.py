"""What roll-ups count, read from the rows of their table."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

from vllm_monitor.persistence.samples.rollup_codec import RollupReader

__all__ = ["rolled_up"]


def rolled_up(path: Path, column: str, step_seconds: int = 60) -> dict[int, float]:
    """How many samples of a series are behind the roll-ups of each step, from all rows of the table."""
    counts: Counter[int] = Counter()
    with closing(sqlite3.connect(path / "monitor.db")) as connection:
        names = dict(connection.execute("SELECT id, metric_name FROM series"))
        layouts = dict(connection.execute("SELECT id, series_ids FROM layouts"))
        query = "SELECT layout_id, payload FROM rollups WHERE step_seconds = ?"
        rows = connection.execute(query, (step_seconds,)).fetchall()
    for layout_id, payload in rows:
        columns = [names[number] for number in json.loads(layouts[layout_id])]
        if column in columns:
            rollup = RollupReader(partial(_slice, payload), len(payload)).read([columns.index(column)])
            for start_ms, count, there in zip(rollup.bucket_ms, rollup.count[:, 0], rollup.present[:, 0], strict=True):
                counts[int(start_ms)] += int(count) if there else 0
    return dict(counts)


def _slice(payload: bytes, offset: int, length: int) -> bytes:
    return payload[offset : offset + length]
