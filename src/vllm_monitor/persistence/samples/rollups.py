"""Roll-ups made of samples, and of finer roll-ups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.samples.block_rows import RollupRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod
from vllm_monitor.persistence.samples.matrices import Matrix
from vllm_monitor.persistence.samples.rollup_codec import Rollup, encode_rollup, last_sequences
from vllm_monitor.persistence.samples.summaries import MINUTE_MS, is_counter, summarise, summarise_spread
from vllm_monitor.records import Series

__all__ = ["MINUTE_SECONDS", "TEN_MINUTES_SECONDS", "rollup_of_matrix", "rollup_row"]

MINUTE_SECONDS = 60
TEN_MINUTES_SECONDS = 600
_FIELDS = ("last", "correction", "low", "high", "total", "count")


def rollup_of_matrix(matrix: Matrix, series: Sequence[Series]) -> Rollup:
    """The roll-up of one minute of some scrapes; ``series`` are the columns."""
    order = np.argsort(matrix.times_ms, kind="stable")
    times = matrix.times_ms[order]
    values = np.ascontiguousarray(matrix.bits[order]).view(np.float64)
    present = None if matrix.present is None else matrix.present[order]
    buckets = np.unique(times // MINUTE_MS) * MINUTE_MS
    finite = np.isfinite(values) if present is None else np.isfinite(values) | ~present
    counts_up = np.array([is_counter(one) for one in series], dtype=bool) & finite.all(axis=0)
    shape = (len(buckets), len(series))
    found = {name: np.zeros(shape) for name in _FIELDS}
    first = np.zeros(len(series))
    there = np.zeros(shape, dtype=bool)
    for columns, rows in _alike(present, len(times), len(series)):
        part = values[np.ix_(rows, columns)]
        summary = summarise(times[rows], part, MINUTE_MS)
        cells = np.ix_(np.searchsorted(buckets, summary.bucket_ms), columns)
        there[cells] = True
        first[columns] = summary.first
        found["last"][cells] = summary.last
        found["correction"][cells] = np.where(counts_up[columns], summary.correction, 0.0)
        level = ~counts_up[columns]
        spread = summarise_spread(times[rows], part[:, level], MINUTE_MS)
        cells = np.ix_(np.searchsorted(buckets, summary.bucket_ms), columns[level])
        for name in ("low", "high", "total", "count"):
            found[name][cells] = getattr(spread, name)
    forms = np.where(counts_up, np.where(found["correction"].any(axis=0), 1, 0), 2).astype(np.uint8)
    return Rollup(
        buckets, forms, there, first, **found,
        first_sequence=int(matrix.sequences.min()),
        last_sequences=last_sequences(buckets, matrix.times_ms, matrix.sequences),
    )  # fmt: skip


def rollup_row(
    rollup: Rollup,
    series: Sequence[Series],
    *,
    step_seconds: int,
    stream_id: int,
    origin_id: int,
    layout_id: int,
    start_ms: int,
    end_ms: int,
    samples: int,
    method: BlockMethod,
    tier: Tier = Tier.SEALED,
) -> RollupRow:
    """The row of a roll-up, with its checksum; its id is 0. Times are those of the samples behind it."""
    payload = encode_rollup(rollup, series, method)
    buckets = len(rollup.bucket_ms)
    return RollupRow(
        0, step_seconds, tier, stream_id, origin_id, layout_id, start_ms, end_ms, buckets, samples, 0, payload
    ).summed()


def _alike(
    present: NDArray[np.bool_] | None, rows: int, columns: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Columns that are there in the same rows, and these rows; columns that never are, are left out."""
    if present is None:
        yield np.arange(columns), np.arange(rows)
        return
    groups: dict[bytes, list[int]] = {}
    for column, packed in enumerate(np.packbits(present, axis=0).T):
        groups.setdefault(packed.tobytes(), []).append(column)
    for members in groups.values():
        at = np.flatnonzero(present[:, members[0]])
        if len(at):
            yield np.array(members), at
