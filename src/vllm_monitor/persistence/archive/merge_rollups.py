"""Roll-ups kept in step with samples that are merged into a store: every sample is rolled up once.

Roll-ups do not say which samples are behind them, so what comes from elsewhere is taken bucket by bucket: for a
bucket that has none here (of that origin and stream) the other store's roll-up is taken over whole, with all that it
remembers of samples that are gone. In a bucket that has one, the samples that are new are rolled up beside it. Coarser
ones are made of those of one minute by compaction; so where there are some of one minute that wait for it, none is
taken over, and what is coarser must come before what is finer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.merge_session import MergeSession, Place
from vllm_monitor.persistence.archive.merged_samples import ScrapeMatrix, StreamName
from vllm_monitor.persistence.samples.block_rows import RollupRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock
from vllm_monitor.persistence.samples.loose_rollups import rollups_of_loose
from vllm_monitor.persistence.samples.matrices import Matrix
from vllm_monitor.persistence.samples.rollup_codec import Rollup, RollupReader, encode_rollup
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS, rollup_of_matrix
from vllm_monitor.persistence.samples.sample_rows import SeriesName, stored_series
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["NO_BUCKETS", "Buckets", "NewRollup", "RollupMerger", "bucket_starts"]

Buckets = NDArray[np.int64]

NO_BUCKETS: Buckets = np.empty(0, dtype=np.int64)

_MINUTE_MS = MINUTE_SECONDS * 1000
_MOST_REMEMBERED = 4096


def bucket_starts(row: RollupRow) -> Buckets:
    """Unix milliseconds at which the buckets of a row begin.

    Raises:
        StoreDamagedError: When it cannot be read.
    """
    return _reader(row.payload).read([]).bucket_ms


@dataclass(frozen=True, slots=True)
class NewRollup:
    """A roll-up that is ready to be inserted; its numbers of stream, origin and layout are filled in then."""

    names: Sequence[SeriesName]
    row: RollupRow


class RollupMerger:
    """Makes, cuts and inserts roll-ups. Not for several threads at once.

    Args:
        session: The store.
        method: How new ones are compressed.
    """

    def __init__(self, session: MergeSession, method: BlockMethod) -> None:
        self._session = session
        self._method = method
        self._starts: OrderedDict[tuple[int, int], Buckets] = OrderedDict()

    def not_covered(self, stream: StreamName, times_ms: NDArray[np.int64], covered: Buckets) -> NDArray[np.bool_]:
        """Which of some new samples must be rolled up here.

        Args:
            stream: Whose they are.
            times_ms: Their times.
            covered: Minutes for which the other store's roll-ups will be given to :meth:`add`.
        """
        minutes = times_ms // _MINUTE_MS * _MINUTE_MS
        later = np.isin(minutes, covered)
        if later.any():
            later &= ~np.isin(minutes, self._here(stream, MINUTE_SECONDS, minutes))
        return np.asarray(~later, dtype=np.bool_)

    def of_scrapes(self, matrix: ScrapeMatrix) -> list[NewRollup]:
        """The roll-up of one minute of some scrapes."""
        if not len(matrix) or not matrix.names:
            return []
        series = [stored_series(name).series for name in matrix.names]
        columns = tuple(range(len(series)))
        whole = Matrix(columns, matrix.times_ms, matrix.sequences, matrix.bits, matrix.present)
        times = int(matrix.times_ms.min()), int(matrix.times_ms.max())
        return [self._new(matrix.names, rollup_of_matrix(whole, series), *times, matrix.samples)]

    def of_loose(self, names: Mapping[int, SeriesName], loose: LooseBlock) -> list[NewRollup]:
        """The roll-ups of one minute of some single samples."""
        if not len(loose.values):
            return []
        series = {number: stored_series(name).series for number, name in names.items()}
        return [
            self._new(
                [names[number] for number in part.series_ids], part.rollup, part.start_ms, part.end_ms, part.samples
            )
            for part in rollups_of_loose(loose, series)
        ]

    def insert(self, connection: Connection, stream: StreamName, place: Place, rollups: Sequence[NewRollup]) -> None:
        """Insert roll-ups, inside the caller's transaction."""
        for new in rollups:
            layout_id = self._session.layout(connection, place[1], new.names, is_loose=not stream.source)
            row = new.row._replace(stream_id=place[1], origin_id=place[0], layout_id=layout_id).summed()._asdict()
            del row["id"]
            connection.execute(insert(schema.rollups), row)

    def add(self, stream: StreamName, step_seconds: int, others: Sequence[NewRollup]) -> int:
        """Take over the buckets that have no roll-up here; their number.

        Args:
            stream: Whose they are.
            step_seconds: Of which step.
            others: All roll-ups of the other store of this stream and step: one bucket may be in several.
        """
        if not others:
            return 0
        wanted = np.unique(np.concatenate([bucket_starts(other.row) for other in others]))
        while True:
            here = self._here(stream, step_seconds, wanted)
            parts = [part for other in others for part in self._without(other, here)]
            if not parts:
                return 0

            def work(connection: Connection, here: Buckets = here, parts: Sequence[NewRollup] = parts) -> bool:
                place = self._session.place(connection, stream.origin_store_id, stream.target, stream.source)
                if not np.array_equal(self._buckets_at(connection, place, step_seconds, wanted), here):
                    return False
                # All in one transaction: half of a bucket would pass for the whole when it is done again.
                self.insert(connection, stream, place, parts)
                return True

            if self._session.write(work):
                return int(len(wanted) - np.isin(wanted, here).sum())

    def within(self, rollup: NewRollup, start_ms: int, end_ms: int) -> list[NewRollup]:
        """The buckets that a range of time touches."""
        starts = bucket_starts(rollup.row)
        step_ms = rollup.row.step_seconds * 1000
        return self._cut(rollup, (starts + step_ms > start_ms) & (starts <= end_ms))

    def _without(self, other: NewRollup, here: Buckets) -> list[NewRollup]:
        return self._cut(other, ~np.isin(bucket_starts(other.row), here))

    def _cut(self, other: NewRollup, keep: NDArray[np.bool_]) -> list[NewRollup]:
        """Some buckets of a roll-up, as one for each run of neighbours; all of it as it is."""
        if keep.all():
            return [other]
        if not keep.any():
            return []
        row = other.row
        whole = _reader(row.payload).read(range(len(other.names)))
        step_ms = row.step_seconds * 1000
        edges = np.flatnonzero(np.diff(np.concatenate(([0], keep.astype(np.int8), [0]))))
        parts = []
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            part = _run_of(whole, start, end)
            start_ms = max(row.start_ms, int(part.bucket_ms[0]))
            end_ms = min(row.end_ms, int(part.bucket_ms[-1]) + step_ms - 1)
            samples = round(row.samples * (end - start) / len(keep))
            made = self._new(other.names, part, start_ms, end_ms, samples)
            parts.append(replace(made, row=made.row._replace(step_seconds=row.step_seconds, tier=row.tier)))
        return parts

    def _new(self, names: Sequence[SeriesName], rollup: Rollup, start_ms: int, end_ms: int, samples: int) -> NewRollup:
        payload = encode_rollup(rollup, [stored_series(name).series for name in names], self._method)
        buckets = len(rollup.bucket_ms)
        row = RollupRow(0, MINUTE_SECONDS, Tier.SEALED, 0, 0, 0, start_ms, end_ms, buckets, samples, 0, payload)
        return NewRollup(names, row)

    def _here(self, stream: StreamName, step_seconds: int, wanted: Buckets) -> Buckets:
        def look(connection: Connection) -> Buckets:
            place = self._session.known_place(connection, stream.origin_store_id, stream.target, stream.source)
            return NO_BUCKETS if place is None else self._buckets_at(connection, place, step_seconds, wanted)

        return self._session.read(look)

    def _buckets_at(self, connection: Connection, place: Place, step_seconds: int, wanted: Buckets) -> Buckets:
        """Buckets near those wanted that have a roll-up here, or will have one when hot rows are sealed."""
        step_ms = step_seconds * 1000
        start_ms, end_ms = int(wanted.min()), int(wanted.max()) + step_ms - 1
        origin_id, stream_id = place
        table = schema.rollups
        of_step = table.c.step_seconds == step_seconds
        if step_seconds > MINUTE_SECONDS:
            # Those of one minute that are not compacted yet become coarser ones when they are.
            of_step |= (table.c.step_seconds == MINUTE_SECONDS) & (table.c.tier == Tier.SEALED)
        query = select(table.c.id, table.c.checksum).where(
            table.c.stream_id == stream_id,
            of_step,
            table.c.start_ms <= end_ms,
            table.c.end_ms >= start_ms,
            table.c.origin_id == origin_id,
        )
        found = [
            self._starts_of(connection, row.id, row.checksum) // step_ms * step_ms
            for row in connection.execute(query).all()
        ]
        if origin_id == OWN_ORIGIN:
            hot = schema.metrics
            times = select(hot.c.start_ms, hot.c.end_ms).where(
                hot.c.stream_id == stream_id, hot.c.start_ms <= end_ms, hot.c.end_ms >= start_ms
            )
            rows = connection.execute(times).all()
            found.append(np.array([time for row in rows for time in row], dtype=np.int64) // step_ms * step_ms)
        return np.unique(np.concatenate(found)) if found else NO_BUCKETS

    def _starts_of(self, connection: Connection, rollup_id: int, checksum: int) -> Buckets:
        known = self._starts.get((rollup_id, checksum))
        if known is None:
            row = connection.execute(select(schema.rollups).where(schema.rollups.c.id == rollup_id)).one()
            known = bucket_starts(RollupRow._make(row))
            self._starts[rollup_id, checksum] = known
            if len(self._starts) > _MOST_REMEMBERED:
                self._starts.popitem(last=False)
        return known


def _reader(payload: bytes) -> RollupReader:
    return RollupReader(lambda offset, length: payload[offset : offset + length], len(payload))


def _run_of(whole: Rollup, start: int, end: int) -> Rollup:
    """Neighbouring buckets; what was last before them is their first value, so that their growth stays the same."""
    first = whole.first
    before = whole.present[:start]
    if before.any():
        newest = start - 1 - np.argmax(before[::-1], axis=0)
        first = np.where(before.any(axis=0), whole.last[newest, np.arange(len(first))], first)
    rows = slice(start, end)
    return Rollup(
        whole.bucket_ms[rows],
        whole.forms,
        whole.present[rows],
        first,
        whole.last[rows],
        whole.correction[rows],
        whole.low[rows],
        whole.high[rows],
        whole.total[rows],
        whole.count[rows],
    )
