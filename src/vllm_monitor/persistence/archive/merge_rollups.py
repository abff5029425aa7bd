"""Roll-ups kept in step with samples that are merged into a store: every sample is rolled up once.

What comes from elsewhere is taken bucket by bucket: for a bucket that has none here (of that origin and stream) the
other store's roll-up is taken over whole, with all that it remembers of samples that are gone. In a bucket that has
one, the samples that are not behind it are rolled up beside it. A roll-up says which are: those from its least
sequence up to the greatest one of the bucket. So samples that retention has deleted here are not counted again when
they come back. What was left out of the middle of that range (a row that was damaged when its neighbours were sealed)
is not counted either, if it ever comes: nothing is counted twice.

Coarser ones are made of those of one minute by compaction; so where there are some of one minute that wait for it,
none is taken over, and what is coarser must come before what is finer. Those of one minute that a coarser one was made
of already do not wait for compaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.known_rollups import (
    NO_BUCKETS,
    Buckets,
    Integers,
    KnownRollups,
    is_behind,
    reader_of,
)
from vllm_monitor.persistence.archive.merge_session import MergeSession, Place
from vllm_monitor.persistence.archive.merged_samples import ScrapeMatrix, StreamName
from vllm_monitor.persistence.samples.block_rows import RollupRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock
from vllm_monitor.persistence.samples.loose_rollups import rollups_of_loose
from vllm_monitor.persistence.samples.matrices import Matrix
from vllm_monitor.persistence.samples.rollup_codec import Rollup, encode_rollup
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS, TEN_MINUTES_SECONDS, rollup_of_matrix
from vllm_monitor.persistence.samples.sample_rows import SeriesName, stored_series

__all__ = ["NO_BUCKETS", "Buckets", "NewRollup", "RollupMerger", "bucket_starts"]

_MINUTE_MS = MINUTE_SECONDS * 1000
_TEN_MINUTES_MS = TEN_MINUTES_SECONDS * 1000


def bucket_starts(row: RollupRow) -> Buckets:
    """Unix milliseconds at which the buckets of a row begin.

    Raises:
        StoreDamagedError: When it cannot be read.
    """
    return reader_of(row.payload).read([]).bucket_ms


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
        self._known = KnownRollups()

    def to_roll_up(
        self, stream: StreamName, times_ms: Integers, sequences: Integers, covered: Buckets
    ) -> NDArray[np.bool_]:
        """Which of some new samples must be rolled up here: all that no roll-up counts, or will count.

        Args:
            stream: Whose they are.
            times_ms: Their times.
            sequences: Their sequences.
            covered: Minutes for which the other store's roll-ups will be given to :meth:`add`.
        """
        minutes = times_ms // _MINUTE_MS * _MINUTE_MS
        if not len(minutes):
            return np.empty(0, dtype=np.bool_)

        def look(connection: Connection) -> NDArray[np.bool_]:
            done = np.isin(minutes, covered)
            place = self._session.known_place(connection, stream.origin_store_id, stream.target, stream.source)
            if place is None:
                return ~done
            done &= ~np.isin(minutes, self._known.buckets(connection, place, MINUTE_SECONDS, minutes))
            for known in self._known.rollups(connection, place, MINUTE_SECONDS, minutes):
                done |= is_behind(known, minutes, sequences)
            return ~done

        return np.asarray(self._session.read(look), dtype=np.bool_)

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
        for new in (part for one in rollups for part in self._by_tier(connection, place, one)):
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
                if not np.array_equal(self._known.buckets(connection, place, step_seconds, wanted), here):
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
        whole = reader_of(row.payload).read(range(len(other.names)))
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
            return NO_BUCKETS if place is None else self._known.buckets(connection, place, step_seconds, wanted)

        return self._session.read(look)

    def _by_tier(self, connection: Connection, place: Place, new: NewRollup) -> list[NewRollup]:
        """A roll-up, or its parts: those that a coarser one was made of already do not wait for compaction."""
        row = new.row
        if row.step_seconds != MINUTE_SECONDS or row.tier != Tier.SEALED:
            return [new]
        whole = reader_of(row.payload).read([])
        coarse = whole.bucket_ms // _TEN_MINUTES_MS * _TEN_MINUTES_MS
        done = np.zeros(len(coarse), dtype=np.bool_)
        for known in self._known.rollups(connection, place, TEN_MINUTES_SECONDS, coarse):
            done |= is_behind(known, coarse, whole.last_sequences)
        cold = [replace(part, row=part.row._replace(tier=Tier.COLD)) for part in self._cut(new, done)]
        return [*self._cut(new, ~done), *cold]


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
        whole.first_sequence,
        whole.last_sequences[rows],
    )
