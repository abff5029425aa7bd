"""Questions about samples, answered from the database and from what is not committed yet, as one."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select, tuple_

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.loose_codec import SPAN_MS
from vllm_monitor.persistence.pending import Batch, LooseSeries, Scrape
from vllm_monitor.persistence.results import SeriesData
from vllm_monitor.persistence.sample_rows import MetricsRow, RowDecoder, SeriesCatalogue, StoredSeries
from vllm_monitor.persistence.sample_values import SampleValue, from_float
from vllm_monitor.persistence.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.value_codec import decode_value, encode_value
from vllm_monitor.records import Layout, Series, metric_type_of

__all__ = ["SampleReader", "Selector", "loose_to_dict", "scrape_to_dicts"]

_EARLIEST, _LATEST = -(1 << 62), 1 << 62
_FIRST_CHUNK, _LARGEST_CHUNK = 16, 4096

SampleDict = dict[str, Any]
_Columns = list[tuple[int, StoredSeries]]


@dataclass(frozen=True, slots=True)
class Selector:
    """Which samples are asked for; ``None`` is no restriction, times are unix milliseconds, both inclusive."""

    target: str | None = None
    metric_type: str | None = None
    metric_name: str | None = None
    tags: Mapping[str, Any] | None = None
    start_ms: int = _EARLIEST
    end_ms: int = _LATEST

    def takes(self, metric_type: str, metric_name: str, tags: Mapping[str, Any]) -> bool:
        """Whether a series is asked for; every given tag must be there with that value."""
        return (
            (self.metric_name is None or metric_name == self.metric_name)
            and (self.metric_type is None or metric_type == self.metric_type)
            and (not self.tags or all(name in tags and tags[name] == wanted for name, wanted in self.tags.items()))
        )

    def takes_target(self, target: str) -> bool:
        """Whether a target is asked for."""
        return self.target is None or target == self.target

    def takes_time(self, time_ms: int) -> bool:
        """Whether a time is asked for."""
        return self.start_ms <= time_ms <= self.end_ms


class _Stream(NamedTuple):
    id: int
    target: str
    source: str


class _Found(NamedTuple):
    """A sample on its way to the caller; the first four order it by time, then by arrival."""

    time_ms: int
    is_pending: bool
    row: int
    position: int
    target: str
    series: StoredSeries
    value: SampleValue
    metadata_json: str | None


@dataclass(slots=True)
class _Gathered:
    target: str
    series: StoredSeries
    times: list[NDArray[np.int64]] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)

    def finish(self) -> SeriesData:
        times, values = np.concatenate(self.times), np.concatenate(self.values)
        if np.any(times[1:] < times[:-1]):  # the clock went backwards, or rows of several processes
            order = np.argsort(times, kind="stable")
            times, values = times[order], values[order]
        known = self.series
        return SeriesData(self.target, known.metric_type, known.series, dict(known.tags), times, values)


def _as_stored(series: Series) -> StoredSeries:
    return StoredSeries(metric_type_of(series.name).value, series, series.tags)


def _loose_as_stored(series: LooseSeries) -> StoredSeries:
    labels = tuple(sorted(series.tags.items(), key=lambda pair: str(pair[0])))
    return StoredSeries(series.metric_type, Series(series.metric_name, labels), series.tags)


def _sample_dict(
    target: str, series: StoredSeries, time_ms: int, value: SampleValue, metadata_json: str | None
) -> SampleDict:
    return {
        "timestamp": time_ms / 1000,
        "metric_type": series.metric_type,
        "metric_name": series.series.name,
        "value": value,
        "tags": dict(series.tags),
        "metadata": {} if metadata_json is None else decode_value(metadata_json),
        "target": target,
    }


def scrape_to_dicts(scrape: Scrape, selector: Selector) -> list[SampleDict]:
    """The samples of a scrape that are asked for."""
    return [
        _sample_dict(scrape.target, stored, scrape.time_ms, scrape.values[column], None)
        for column, stored in _columns_of_layout(scrape.layout, selector)
    ]


def loose_to_dict(series: LooseSeries) -> SampleDict | None:
    """The newest sample of a series, if there is one."""
    newest = series.newest
    if newest is None:
        return None
    return _sample_dict(series.target, _loose_as_stored(series), newest.time_ms, newest.value, newest.metadata_json)


def _columns_of_layout(layout: Layout, selector: Selector) -> _Columns:
    return [
        (column, _as_stored(series))
        for column, series in enumerate(layout.series)
        if (selector.metric_name is None or series.name == selector.metric_name)
        and selector.takes(metric_type_of(series.name).value, series.name, series.tags)
    ]


class SampleReader:
    """Answers from one consistent view; used once and thrown away.

    Args:
        memory: What is not committed.
        connection: A view of the database at the same moment; ``None`` when there is none.
        catalogue: Belongs to the database.
    """

    def __init__(self, memory: Batch, connection: Connection | None, catalogue: SeriesCatalogue) -> None:
        self._memory = memory
        self._connection = connection
        self._catalogue = catalogue
        self._columns: dict[int, _Columns] = {}
        self._damaged_layouts = 0
        self._decoder = RowDecoder(connection, catalogue) if connection is not None else None

    @property
    def damaged_rows(self) -> int:
        """Rows that were skipped because they are damaged."""
        return self._damaged_layouts + (self._decoder.damaged if self._decoder is not None else 0)

    def targets(self) -> list[str]:
        """Every target with samples, sorted."""
        found = {stream.target for stream in self._streams(Selector())}
        found.update(scrape.target for scrape in self._memory.scrapes)
        found.update(sample.series.target for sample in self._memory.loose)
        return sorted(found)

    def series(self, target: str | None) -> list[Series]:
        """Every series, sorted by name and labels."""
        found: dict[str, Series] = {}
        selector = Selector(target=target)
        for stream in self._streams(selector):
            for stored in self._series_of_stream(stream):
                found[str(stored.series)] = stored.series
        for layout in {scrape.layout for scrape in self._memory.scrapes if selector.takes_target(scrape.target)}:
            found.update((str(series), series) for series in layout.series)
        for sample in self._memory.loose:
            if selector.takes_target(sample.series.target):
                series = _loose_as_stored(sample.series).series
                found.setdefault(str(series), series)
        return [found[name] for name in sorted(found)]

    def scrape_times(self, selector: Selector) -> dict[str, NDArray[np.int64]]:
        """Source to the ascending times of its scrapes."""
        found: dict[str, list[int]] = {}
        table = schema.metrics
        for stream in self._streams(selector):
            if stream.source and self._connection is not None:
                query = select(table.c.start_ms).where(
                    table.c.stream_id == stream.id, table.c.start_ms.between(selector.start_ms, selector.end_ms)
                )
                found.setdefault(stream.source, []).extend(self._connection.execute(query).scalars())
        for scrape in self._memory.scrapes:
            if selector.takes_target(scrape.target) and selector.takes_time(scrape.time_ms):
                found.setdefault(scrape.source, []).append(scrape.time_ms)
        return {source: np.sort(np.array(times, dtype=np.int64)) for source, times in sorted(found.items()) if times}

    def range(self, selector: Selector) -> list[SeriesData]:
        """Every series that is asked for, with its samples in order of time."""
        gathered: dict[tuple[str, str, str, Any], _Gathered] = {}
        for stream in self._streams(selector):
            self._gather_stream(stream, selector, gathered)
        self._gather_memory(selector, gathered)
        return [gathered[key].finish() for key in sorted(gathered, key=repr)]

    def newest(self, selector: Selector, limit: int | None) -> list[SampleDict]:
        """The newest samples that are asked for, newest first; equal times in reverse order of arrival."""
        found = list(self._found_in_memory(selector))
        for stream in self._streams(selector):
            found.extend(self._found_on_disk(stream, selector, limit))
        found = sorted(found, key=_order, reverse=True) if limit is None else heapq.nlargest(limit, found, _order)
        return [_sample_dict(one.target, one.series, one.time_ms, one.value, one.metadata_json) for one in found]

    def newest_row(self, selector: Selector, skip: set[tuple[str, str]]) -> list[SampleDict]:
        """The newest stored scrape of each stream (or newest single samples), but for the streams to skip."""
        result: list[SampleDict] = []
        for stream in self._streams(selector):
            if (stream.target, stream.source) in skip:
                continue
            newest: dict[str, _Found] = {}
            for rows in self._rows_newest_first(stream, selector, first_chunk=1 if stream.source else 300):
                for found in sorted(self._found_in_rows(stream, rows, selector), key=_order):
                    newest[str(found.series.series)] = found
                break
            result.extend(
                _sample_dict(one.target, one.series, one.time_ms, one.value, one.metadata_json)
                for one in newest.values()
            )
        return result

    def _streams(self, selector: Selector) -> list[_Stream]:
        if self._connection is None:
            return []
        streams, targets = schema.streams, schema.targets
        query = select(streams.c.id, targets.c.target, streams.c.source).join_from(streams, targets)
        if selector.target is not None:
            query = query.where(targets.c.target == to_text_column(selector.target))
        return [
            _Stream(number, from_text_column(target), from_text_column(source))
            for number, target, source in self._connection.execute(query.order_by(streams.c.id))
        ]

    def _series_of_stream(self, stream: _Stream) -> list[StoredSeries]:
        if self._connection is None:
            return []
        numbers: set[int] = set()
        layouts, loose = schema.stream_layouts, schema.stream_series
        query = select(layouts.c.layout_id).where(layouts.c.stream_id == stream.id)
        for layout_id in self._connection.execute(query).scalars().all():
            try:
                numbers.update(self._catalogue.layout(self._connection, layout_id))
            except StoreDamagedError:
                self._damaged_layouts += 1
        query = select(loose.c.series_id).where(loose.c.stream_id == stream.id)
        numbers.update(self._connection.execute(query).scalars())
        return list(self._catalogue.series(self._connection, numbers).values())

    def _has_match(self, stream: _Stream, selector: Selector) -> bool:
        return any(
            selector.takes(stored.metric_type, stored.series.name, stored.tags)
            for stored in self._series_of_stream(stream)
        )

    def _columns_of(self, layout_id: int, selector: Selector) -> _Columns:
        """Columns of a stored layout that are asked for."""
        known = self._columns.get(layout_id)
        if known is None:
            known = []
            if self._connection is not None:
                numbers = self._catalogue.layout(self._connection, layout_id)
                stored = self._catalogue.series(self._connection, numbers)
                known = [
                    (column, stored[number])
                    for column, number in enumerate(numbers)
                    if number in stored
                    and selector.takes(stored[number].metric_type, stored[number].series.name, stored[number].tags)
                ]
            self._columns[layout_id] = known
        return known

    def _gather_stream(
        self, stream: _Stream, selector: Selector, gathered: dict[tuple[str, str, str, Any], _Gathered]
    ) -> None:
        if self._connection is None or self._decoder is None or not self._has_match(stream, selector):
            return
        table = schema.metrics
        slack = 0 if stream.source else SPAN_MS
        query = (
            select(table)
            .where(
                table.c.stream_id == stream.id,
                table.c.start_ms.between(selector.start_ms - slack, selector.end_ms),
            )
            .order_by(table.c.id)
        )
        rows = [MetricsRow._make(row) for row in self._connection.execute(query)]
        self._gather_scrapes(stream, rows, selector, gathered)
        for _, loose in self._decoder.loose(rows):
            stored = self._catalogue.series(self._connection, set(loose.series_ids.tolist()))
            in_time = (loose.times_ms >= selector.start_ms) & (loose.times_ms <= selector.end_ms)
            for number, known in stored.items():
                if selector.takes(known.metric_type, known.series.name, known.tags):
                    mask = in_time & (loose.series_ids == number)
                    if mask.any():
                        into = _into(gathered, stream.target, known)
                        into.times.append(loose.times_ms[mask])
                        into.values.append(loose.values[mask])

    def _gather_scrapes(
        self,
        stream: _Stream,
        rows: list[MetricsRow],
        selector: Selector,
        gathered: dict[tuple[str, str, str, Any], _Gathered],
    ) -> None:
        if self._decoder is None:
            return
        by_layout: dict[int, tuple[_Columns, list[int], list[NDArray[np.uint64]]]] = {}
        picks: dict[int, NDArray[np.intp]] = {}
        for scrape in self._decoder.scrapes(rows):
            if scrape.layout_id not in by_layout:
                columns = self._columns_of(scrape.layout_id, selector)
                by_layout[scrape.layout_id] = (columns, [], [])
                picks[scrape.layout_id] = np.array([column for column, _ in columns], dtype=np.intp)
            _, times, bits = by_layout[scrape.layout_id]
            times.append(scrape.time_ms)
            bits.append(scrape.bits[picks[scrape.layout_id]])
        for columns, times, bits in by_layout.values():
            if columns and times:
                matrix = np.array(bits).view(np.float64)
                when = np.array(times, dtype=np.int64)
                for position, (_, stored) in enumerate(columns):
                    into = _into(gathered, stream.target, stored)
                    into.times.append(when)
                    into.values.append(matrix[:, position].copy())

    def _gather_memory(self, selector: Selector, gathered: dict[tuple[str, str, str, Any], _Gathered]) -> None:
        for found in self._found_in_memory(selector):
            into = _into(gathered, found.target, found.series)
            into.times.append(np.array([found.time_ms], dtype=np.int64))
            into.values.append(np.array([float(found.value)], dtype=np.float64))

    def _found_in_memory(self, selector: Selector) -> Iterator[_Found]:
        columns: dict[Layout, _Columns] = {}
        for number, scrape in enumerate(self._memory.scrapes):
            if selector.takes_target(scrape.target) and selector.takes_time(scrape.time_ms):
                if scrape.layout not in columns:
                    columns[scrape.layout] = _columns_of_layout(scrape.layout, selector)
                for column, stored in columns[scrape.layout]:
                    yield _Found(
                        scrape.time_ms, True, number, column, scrape.target, stored, scrape.values[column], None
                    )
        known: dict[int, StoredSeries] = {}
        for number, (series, time_ms, value, metadata_json) in enumerate(self._memory.loose):
            if (
                selector.takes_target(series.target)
                and selector.takes_time(time_ms)
                and selector.takes(series.metric_type, series.metric_name, series.tags)
            ):
                stored = known.setdefault(id(series), _loose_as_stored(series))
                yield _Found(time_ms, True, number, 0, series.target, stored, value, metadata_json)

    def _found_on_disk(self, stream: _Stream, selector: Selector, limit: int | None) -> list[_Found]:
        found: list[_Found] = []
        if not self._has_match(stream, selector):
            return found
        for rows in self._rows_newest_first(stream, selector, first_chunk=_FIRST_CHUNK):
            found.extend(self._found_in_rows(stream, rows, selector))
            if limit is not None:
                # Nothing that is still unread can be newer than this.
                bound = min(row.start_ms for row in rows) + (-1 if stream.source else SPAN_MS)
                if sum(one.time_ms > bound for one in found) >= limit:
                    break
        return found

    def _found_in_rows(self, stream: _Stream, rows: list[MetricsRow], selector: Selector) -> Iterator[_Found]:
        if self._decoder is None or self._connection is None:
            return
        rows.sort()
        for scrape in self._decoder.scrapes(rows):
            values = scrape.bits.view(np.float64)
            for column, stored in self._columns_of(scrape.layout_id, selector):
                yield _Found(
                    scrape.time_ms, False, scrape.row_id, column, stream.target, stored, float(values[column]), None
                )
        for row_id, loose in self._decoder.loose(rows):
            numbers = loose.series_ids.tolist()
            known = {
                number: stored
                for number, stored in self._catalogue.series(self._connection, numbers).items()
                if selector.takes(stored.metric_type, stored.series.name, stored.tags)
            }
            times, values, codes = loose.times_ms.tolist(), loose.values.tolist(), loose.codes.tolist()
            for position, number in enumerate(numbers):
                if number in known and selector.takes_time(times[position]):
                    yield _Found(
                        times[position],
                        False,
                        row_id,
                        position,
                        stream.target,
                        known[number],
                        from_float(values[position], codes[position]),
                        loose.metadata.get(position),
                    )

    def _rows_newest_first(self, stream: _Stream, selector: Selector, first_chunk: int) -> Iterator[list[MetricsRow]]:
        if self._connection is None:
            return
        table = schema.metrics
        slack = 0 if stream.source else SPAN_MS
        query = (
            select(table)
            .where(
                table.c.stream_id == stream.id,
                table.c.start_ms.between(selector.start_ms - slack, selector.end_ms),
            )
            .order_by(table.c.start_ms.desc(), table.c.id.desc())
        )
        size, after = first_chunk, query
        while True:
            rows = [MetricsRow._make(row) for row in self._connection.execute(after.limit(size))]
            if not rows:
                return
            oldest = rows[-1]
            full = len(rows) == size
            yield rows
            if not full:
                return
            after = query.where(tuple_(table.c.start_ms, table.c.id) < tuple_(oldest.start_ms, oldest.id))
            size = min(size * 4, _LARGEST_CHUNK)


def count_samples(connection: Connection) -> tuple[int, int, int | None, int | None]:
    """Samples, rows, and the oldest and newest time (unix milliseconds) of ``metrics``."""
    table = schema.metrics
    query = select(
        func.coalesce(func.sum(table.c.samples), 0),
        func.count(),
        func.min(table.c.start_ms),
        func.max(table.c.end_ms),
    )
    samples, rows, oldest, newest = connection.execute(query).one()
    return int(samples), int(rows), oldest, newest


def _order(found: _Found) -> tuple[int, bool, int, int]:
    return found[:4]


def _into(gathered: dict[tuple[str, str, str, Any], _Gathered], target: str, stored: StoredSeries) -> _Gathered:
    labels: Any = stored.series.labels
    if not all(type(value) is str for _, value in labels):
        labels = encode_value(labels)  # 1 and True are different tags, and a list is no key
    key = (target, stored.metric_type, stored.series.name, labels)
    return gathered.setdefault(key, _Gathered(target, stored))
