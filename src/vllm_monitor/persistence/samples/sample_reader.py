"""Questions about samples, answered from the database and from what is not committed yet, as one."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from vllm_monitor.persistence.pending import Batch
from vllm_monitor.persistence.results import SeriesData
from vllm_monitor.persistence.samples.gathering import NOT_COMMITTED, Gathering, Part
from vllm_monitor.persistence.samples.hot_samples import HotSamples
from vllm_monitor.persistence.samples.sample_dicts import FoundSample, SampleDict, loose_as_stored, order_of
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue, StoredSeries
from vllm_monitor.persistence.samples.sealed_samples import SealedSamples
from vllm_monitor.persistence.samples.selection import Columns, Scope, Selector, Stream, as_stored, columns_of_layout
from vllm_monitor.records import Layout, Series

__all__ = ["SampleReader"]


class SampleReader:
    """Answers from one consistent view; used once and thrown away.

    Args:
        memory: What is not committed.
        connection: A view of the database at the same moment; ``None`` when there is none.
        catalogue: Belongs to the database.
        selector: What is asked for.
    """

    def __init__(
        self, memory: Batch, connection: Connection | None, catalogue: SeriesCatalogue, selector: Selector
    ) -> None:
        self._memory = memory
        self._selector = selector
        self.scope = None if connection is None else Scope(connection, catalogue, selector)
        self._hot = None if self.scope is None else HotSamples(self.scope)
        self._sealed = None if self.scope is None else SealedSamples(self.scope)

    @property
    def damaged_rows(self) -> int:
        """Rows that were skipped because they are damaged."""
        if self.scope is None or self._hot is None or self._sealed is None:
            return 0
        return self.scope.damaged_layouts + self._hot.damaged + self._sealed.damaged

    def targets(self) -> list[str]:
        """Every target with samples, sorted."""
        found = {stream.target for stream in self.streams()}
        found.update(scrape.target for scrape in self._memory.scrapes)
        found.update(sample.series.target for sample in self._memory.loose)
        return sorted(found)

    def series(self) -> list[Series]:
        """Every series, sorted by name and labels."""
        found: dict[Hashable, Series] = {}
        takes = self._selector.takes_target
        if self.scope is not None:
            for stream in self.streams():
                found.update((_name_of(stored), stored.series) for stored in self.scope.all_series(stream))
        for layout in {scrape.layout for scrape in self._memory.scrapes if takes(scrape.target)}:
            found.update((_name_of(as_stored(series)), series) for series in layout.series)
        for sample in self._memory.loose:
            if takes(sample.series.target):
                stored = loose_as_stored(sample.series)
                found.setdefault(_name_of(stored), stored.series)
        return sorted(found.values(), key=str)

    def scrape_times(self) -> dict[str, NDArray[np.int64]]:
        """Source to the ascending times of its scrapes."""
        found: dict[str, list[int]] = {}
        if self._hot is not None and self._sealed is not None:
            for stream in self.streams():
                if stream.source:
                    times = found.setdefault(stream.source, [])
                    times += self._sealed.times(stream)
                    times += self._hot.times(stream)
        for scrape in self._memory.scrapes:
            if self._selector.takes_target(scrape.target) and self._selector.takes_time(scrape.time_ms):
                found.setdefault(scrape.source, []).append(scrape.time_ms)
        return {source: np.sort(np.array(times, dtype=np.int64)) for source, times in sorted(found.items()) if times}

    def range(self) -> list[SeriesData]:
        """Every series that is asked for, with its samples in order of time."""
        gathering = Gathering()
        for stream in self.streams():
            self.gather_sealed(stream, gathering)
            self.gather_hot(stream, gathering)
        self.gather_memory(gathering)
        return [found.to_series_data() for found in gathering]

    def newest(self, limit: int | None) -> list[SampleDict]:
        """The newest samples that are asked for, newest first; equal times in reverse order of arrival."""
        found = list(self._found_in_memory())
        if self._hot is not None and self._sealed is not None and limit != 0:
            for stream in self.streams():
                found += self._hot.found(stream, limit)
                found += self._sealed.found(stream, limit)
        ordered = sorted(found, key=order_of, reverse=True) if limit is None else heapq.nlargest(limit, found, order_of)
        return [one.to_dict() for one in ordered]

    def newest_row(self, skip: set[tuple[str, str]]) -> list[SampleDict]:
        """The newest stored scrape of each stream (or newest single samples), but for the streams to skip."""
        result: list[SampleDict] = []
        for stream in self.streams():
            if (stream.target, stream.source) not in skip:
                newest: dict[tuple[Hashable, int], FoundSample] = {}
                for found in self._newest_of(stream):
                    # A page that repeats a series has it in several columns.
                    newest[_name_of(found.series), found.position if stream.source else 0] = found
                result.extend(found.to_dict() for found in newest.values())
        return result

    def streams(self) -> list[Stream]:
        """The stored streams that are asked for."""
        return [] if self.scope is None else self.scope.streams()

    def gather_sealed(self, stream: Stream, gathering: Gathering) -> None:
        """Collect what is sealed."""
        if self._sealed is not None:
            self._sealed.gather(stream, gathering)

    def gather_hot(self, stream: Stream, gathering: Gathering) -> None:
        """Collect what is committed, but not sealed."""
        if self._hot is not None:
            self._hot.gather(stream, gathering)

    def gather_memory(self, gathering: Gathering) -> None:
        """Collect what is not committed."""
        selector = self._selector
        by_layout: dict[tuple[str, Layout], tuple[Columns, list[int], list[int]]] = {}
        for number, scrape in enumerate(self._memory.scrapes):
            if selector.takes_target(scrape.target) and selector.takes_time(scrape.time_ms):
                key = scrape.target, scrape.layout
                known = by_layout.get(key)
                if known is None:
                    known = by_layout[key] = columns_of_layout(scrape.layout, selector), [], []
                known[1].append(number)
                known[2].append(scrape.time_ms)
        for (target, _), (columns, numbers, times) in by_layout.items():
            when, arrived = np.array(times, dtype=np.int64), np.array(numbers, dtype=np.int64)
            for column, stored in columns:
                values = np.array([self._memory.scrapes[number].values[column] for number in numbers], dtype=np.float64)
                gathering.add(target, stored, Part(when, values, NOT_COMMITTED, arrived, column))
        self._gather_pending_loose(gathering)

    def _gather_pending_loose(self, gathering: Gathering) -> None:
        selector = self._selector
        by_series: dict[int, tuple[str, StoredSeries | None, list[int], list[int], list[float]]] = {}
        for number, (series, time_ms, value, _) in enumerate(self._memory.loose):
            known = by_series.get(id(series))
            if known is None:
                wanted = selector.takes_target(series.target) and selector.takes(
                    series.metric_type, series.metric_name, series.tags
                )
                stored = loose_as_stored(series) if wanted else None
                known = by_series[id(series)] = series.target, stored, [], [], []
            if known[1] is not None and selector.takes_time(time_ms):
                known[2].append(number)
                known[3].append(time_ms)
                known[4].append(float(value))
        for target, stored, numbers, times, values in by_series.values():
            if stored is not None and numbers:
                arrived = np.array(numbers, dtype=np.int64)
                when = np.array(times, dtype=np.int64)
                gathering.add(target, stored, Part(when, np.array(values, dtype=np.float64), NOT_COMMITTED, arrived, 0))

    def _newest_of(self, stream: Stream) -> list[FoundSample]:
        if self._hot is None or self._sealed is None:
            return []
        hot, sealed = self._hot.newest(stream), self._sealed.newest(stream)
        if not stream.source:
            return sorted(hot + sealed, key=order_of)
        # The newer scrape, not a mixture of the two.
        return max(hot, sealed, key=lambda found: found[-1][:3] if found else (-(1 << 62), 0, 0))

    def _found_in_memory(self) -> Iterator[FoundSample]:
        selector = self._selector
        columns: dict[Layout, Columns] = {}
        for number, scrape in enumerate(self._memory.scrapes):
            if selector.takes_target(scrape.target) and selector.takes_time(scrape.time_ms):
                if scrape.layout not in columns:
                    columns[scrape.layout] = columns_of_layout(scrape.layout, selector)
                for column, stored in columns[scrape.layout]:
                    at = scrape.time_ms, NOT_COMMITTED, number, column
                    yield FoundSample(*at, scrape.target, stored, scrape.values[column], None)  # fmt: skip
        known: dict[int, StoredSeries] = {}
        for number, (series, time_ms, value, metadata_json) in enumerate(self._memory.loose):
            if (
                selector.takes_target(series.target)
                and selector.takes_time(time_ms)
                and selector.takes(series.metric_type, series.metric_name, series.tags)
            ):
                stored = known.setdefault(id(series), loose_as_stored(series))
                yield FoundSample(
                    time_ms, NOT_COMMITTED, number, 0, series.target, stored, value, metadata_json
                )  # fmt: skip


def _name_of(stored: StoredSeries) -> Hashable:
    """The same for the same series of a target; tags of different types are told apart."""
    return stored.series.name, stored.label_key
