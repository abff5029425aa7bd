"""Samples that are committed but not sealed yet: rows of ``metrics``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, select, tuple_

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.sample_values import from_float
from vllm_monitor.persistence.samples.gathering import Gathering, Part
from vllm_monitor.persistence.samples.loose_codec import SPAN_MS
from vllm_monitor.persistence.samples.sample_dicts import FoundSample, order_of
from vllm_monitor.persistence.samples.sample_rows import MetricsRow, RowDecoder
from vllm_monitor.persistence.samples.scrape_codec import Bits
from vllm_monitor.persistence.samples.selection import Columns, Scope, Stream
from vllm_monitor.persistence.samples.store_query import StoreQuery
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["HotSamples"]

_FIRST_CHUNK, _LARGEST_CHUNK = 16, 4096

_table = schema.metrics
_IN_RANGE = select(_table).where(
    _table.c.stream_id == bindparam("stream_id"), _table.c.start_ms.between(bindparam("start_ms"), bindparam("end_ms"))
)
_BY_ARRIVAL = StoreQuery(_IN_RANGE.order_by(_table.c.id))
_NEWEST = _IN_RANGE.order_by(_table.c.start_ms.desc(), _table.c.id.desc()).limit(bindparam("most"))
_NEWEST_FIRST = StoreQuery(_NEWEST)
_NEXT_NEWEST = StoreQuery(
    _NEWEST.where(tuple_(_table.c.start_ms, _table.c.id) < tuple_(bindparam("before_ms"), bindparam("before_id")))
)
_TIMES = StoreQuery(
    select(_table.c.start_ms).where(
        _table.c.stream_id == bindparam("stream_id"),
        _table.c.start_ms.between(bindparam("start_ms"), bindparam("end_ms")),
    )
)


class HotSamples:
    """Reads hot rows of one view of the database.

    Args:
        scope: The view, and what is asked for.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._selector = scope.selector
        self._decoder = RowDecoder(scope.connection, scope.catalogue)

    @property
    def damaged(self) -> int:
        """Rows that were skipped because they are damaged."""
        return self._decoder.damaged

    def times(self, stream: Stream) -> list[int]:
        """When each row of a stream in the range was scraped."""
        rows = _TIMES.rows(
            self._scope.connection,
            stream_id=stream.id,
            start_ms=self._selector.start_ms,
            end_ms=self._selector.end_ms,
        )
        return [time_ms for (time_ms,) in rows]

    def gather(self, stream: Stream, gathering: Gathering) -> None:
        """Collect what is asked for."""
        rows = [MetricsRow._make(row) for row in _BY_ARRIVAL.rows(self._scope.connection, **self._range(stream))]
        if rows and self._scope.has_match(stream):
            self._gather_scrapes(stream, rows, gathering)
            self._gather_loose(stream, rows, gathering)

    def found(self, stream: Stream, limit: int | None) -> list[FoundSample]:
        """The newest samples that are asked for, at least ``limit`` of them if there are, in no order."""
        found: list[FoundSample] = []
        for rows in self._newest_first(stream, _FIRST_CHUNK):
            if not found and not self._scope.has_match(stream):
                return []
            found.extend(self._found_in(stream, rows))
            if limit is not None:
                # Nothing that is still unread can be newer than this.
                bound = min(row.start_ms for row in rows) + (-1 if stream.source else SPAN_MS)
                if sum(one.time_ms > bound for one in found) >= limit:
                    break
        return found

    def newest(self, stream: Stream) -> list[FoundSample]:
        """The newest scrape of a stream, or its newest single samples, in order of time."""
        for rows in self._newest_first(stream, 1 if stream.source else 300):
            return sorted(self._found_in(stream, rows), key=order_of)
        return []

    def _range(self, stream: Stream) -> dict[str, int]:
        slack = 0 if stream.source else SPAN_MS
        return {
            "stream_id": stream.id,
            "start_ms": self._selector.start_ms - slack,
            "end_ms": self._selector.end_ms,
        }

    def _gather_scrapes(self, stream: Stream, rows: list[MetricsRow], gathering: Gathering) -> None:
        by_layout: dict[int, tuple[Columns, NDArray[np.intp], list[int], list[int], list[Bits]]] = {}
        for scrape in self._decoder.scrapes(rows):
            known = by_layout.get(scrape.layout_id)
            if known is None:
                columns = self._scope.columns(scrape.layout_id)
                wanted = np.array([column for column, _ in columns], dtype=np.intp)
                known = by_layout[scrape.layout_id] = columns, wanted, [], [], []
            _, wanted, times, sequences, bits = known
            times.append(scrape.time_ms)
            sequences.append(scrape.row_id)
            bits.append(scrape.bits[wanted])
        for columns, _, times, sequences, bits in by_layout.values():
            matrix = np.array(bits).view(np.float64)
            when, arrived = np.array(times, dtype=np.int64), np.array(sequences, dtype=np.int64)
            for place, (column, stored) in enumerate(columns):
                part = Part(when, matrix[:, place].copy(), OWN_ORIGIN, arrived, column)
                gathering.add(stream.target, stored, part)

    def _gather_loose(self, stream: Stream, rows: list[MetricsRow], gathering: Gathering) -> None:
        for row_id, loose in self._decoder.loose(rows):
            in_time = (loose.times_ms >= self._selector.start_ms) & (loose.times_ms <= self._selector.end_ms)
            for number, stored in self._scope.series(set(loose.series_ids.tolist())).items():
                places = np.flatnonzero(in_time & (loose.series_ids == number))
                sequences = np.full(len(places), row_id, dtype=np.int64)
                part = Part(loose.times_ms[places], loose.values[places], OWN_ORIGIN, sequences, places)
                gathering.add(stream.target, stored, part)

    def _found_in(self, stream: Stream, rows: list[MetricsRow]) -> Iterator[FoundSample]:
        rows.sort()
        for scrape in self._decoder.scrapes(rows):
            values = scrape.bits.view(np.float64)
            for column, stored in self._columns(scrape.layout_id):
                at = scrape.time_ms, OWN_ORIGIN, scrape.row_id, column
                yield FoundSample(*at, stream.target, stored, float(values[column]), None)
        for row_id, loose in self._decoder.loose(rows):
            numbers = loose.series_ids.tolist()
            known = self._scope.series(numbers)
            times, values, codes = loose.times_ms.tolist(), loose.values.tolist(), loose.codes.tolist()
            for position, number in enumerate(numbers):
                if number in known and self._selector.takes_time(times[position]):
                    value = from_float(values[position], codes[position])
                    yield FoundSample(
                        times[position],
                        OWN_ORIGIN,
                        row_id,
                        position,
                        stream.target,
                        known[number],
                        value,
                        loose.metadata.get(position),
                    )

    def _columns(self, layout_id: int) -> Columns:
        try:
            return self._scope.columns(layout_id)
        except StoreDamagedError:
            self._decoder.damaged += 1
            return ()

    def _newest_first(self, stream: Stream, first_chunk: int) -> Iterator[list[MetricsRow]]:
        size, query, after = first_chunk, _NEWEST_FIRST, self._range(stream)
        while True:
            rows = [MetricsRow._make(row) for row in query.rows(self._scope.connection, **after, most=size)]
            if not rows:
                return
            oldest = rows[-1]
            full = len(rows) == size
            yield rows
            if not full:
                return
            query, after = _NEXT_NEWEST, {**after, "before_ms": oldest.start_ms, "before_id": oldest.id}
            size = min(size * 4, _LARGEST_CHUNK)
