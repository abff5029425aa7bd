"""Which samples a question is about, and where in the store they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.tags import is_same_tag, sorted_tags
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.codecs.value_codec import encode_value
from vllm_monitor.persistence.samples.canonical_names import page_names
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue, StoredSeries
from vllm_monitor.persistence.samples.store_query import StoreQuery
from vllm_monitor.records import Layout, Series, metric_type_of

__all__ = ["EARLIEST_MS", "LATEST_MS", "Columns", "Scope", "Selector", "Stream", "as_stored", "columns_of_layout"]

EARLIEST_MS, LATEST_MS = -(1 << 62), 1 << 62

Columns = tuple[tuple[int, StoredSeries], ...]
"""Numbers of the columns that are asked for, and what they are."""

_streams, _targets = schema.streams, schema.targets
_ALL_STREAMS = select(_streams.c.id, _targets.c.target, _streams.c.source).join_from(_streams, _targets)
_EVERY_STREAM = StoreQuery(_ALL_STREAMS.order_by(_streams.c.id))
_STREAMS_OF_TARGET = StoreQuery(_ALL_STREAMS.where(_targets.c.target == bindparam("target")).order_by(_streams.c.id))
_LAYOUTS_OF_STREAM = StoreQuery(
    select(schema.stream_layouts.c.layout_id).where(schema.stream_layouts.c.stream_id == bindparam("stream_id"))
)
_LOOSE_SERIES_OF_STREAM = StoreQuery(
    select(schema.stream_series.c.series_id).where(schema.stream_series.c.stream_id == bindparam("stream_id"))
)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which samples are asked for; ``None`` is no restriction, times are unix milliseconds, both inclusive."""

    target: str | None = None
    metric_type: str | None = None
    metric_name: str | None = None
    tags: Mapping[str, Any] | None = None
    start_ms: int = EARLIEST_MS
    end_ms: int = LATEST_MS

    def takes(self, metric_type: str, metric_name: str, tags: Mapping[str, Any]) -> bool:
        """Whether a series is asked for; every given tag must be there with that value."""
        return (
            self.takes_name(metric_name, tags)
            and (self.metric_type is None or metric_type == self.metric_type)
            and (
                not self.tags
                or all(name in tags and is_same_tag(tags[name], wanted) for name, wanted in self.tags.items())
            )
        )

    def takes_name(self, metric_name: str, tags: Mapping[str, Any]) -> bool:
        """Whether a name is asked for: by itself, or by the canonical name that stands for it."""
        if self.metric_name is None or metric_name == self.metric_name:
            return True
        alias = page_names(self.metric_name)
        return alias is not None and alias.takes(metric_name, tags)

    def takes_stored(self, stored: StoredSeries) -> bool:
        """Whether a series of the store is asked for."""
        return self.takes(stored.metric_type, stored.series.name, stored.tags)

    def takes_target(self, target: str) -> bool:
        """Whether a target is asked for."""
        return self.target is None or target == self.target

    def takes_time(self, time_ms: int) -> bool:
        """Whether a time is asked for."""
        return self.start_ms <= time_ms <= self.end_ms

    def key(self) -> tuple[str | None, str | None, str]:
        """The same for selectors that take the same series of a target."""
        tags = "" if not self.tags else encode_value(sorted_tags(self.tags))
        return self.metric_type, self.metric_name, tags


class Stream(NamedTuple):
    """A row of ``streams``; the source ``""`` is that of samples saved one by one."""

    id: int
    target: str
    source: str


def as_stored(series: Series) -> StoredSeries:
    """A scraped series as it will be stored."""
    return StoredSeries(metric_type_of(series.name).value, series, series.tags)


def columns_of_layout(layout: Layout, selector: Selector) -> Columns:
    """Columns of a layout in memory that are asked for."""
    return tuple(
        (column, as_stored(series))
        for column, series in enumerate(layout.series)
        if selector.takes(metric_type_of(series.name).value, series.name, series.tags)
    )


class Scope:
    """The part of one view of the database that a selector is about; used once and thrown away.

    Args:
        connection: The view.
        catalogue: Belongs to the database.
        selector: What is asked for.
    """

    def __init__(self, connection: Connection, catalogue: SeriesCatalogue, selector: Selector) -> None:
        self.connection = connection
        self.catalogue = catalogue
        self.selector = selector
        self.damaged_layouts = 0
        self._key = selector.key()

    def streams(self) -> list[Stream]:
        """The streams of the targets that are asked for."""
        if self.selector.target is None:
            rows = _EVERY_STREAM.rows(self.connection)
        else:
            rows = _STREAMS_OF_TARGET.rows(self.connection, target=to_text_column(self.selector.target))
        return [Stream(number, from_text_column(target), from_text_column(source)) for number, target, source in rows]

    def columns(self, layout_id: int) -> Columns:
        """Columns of a stored layout that are asked for.

        Raises:
            StoreDamagedError: When the layout is damaged or missing.
        """
        return self.catalogue.matches(self.connection, layout_id, self._key, self.selector.takes_stored)

    def column_count(self, layout_id: int) -> int:
        """How many columns a stored layout has.

        Raises:
            StoreDamagedError: When the layout is damaged or missing.
        """
        return len(self.catalogue.layout(self.connection, layout_id))

    def series(self, numbers: Iterable[int]) -> dict[int, StoredSeries]:
        """Those of some series that are asked for, by number."""
        found = self.catalogue.series(self.connection, numbers)
        return {number: stored for number, stored in found.items() if self.selector.takes_stored(stored)}

    def all_series(self, stream: Stream) -> list[StoredSeries]:
        """Every series of a stream that is asked for."""
        numbers: set[int] = set()
        for (layout_id,) in _LAYOUTS_OF_STREAM.rows(self.connection, stream_id=stream.id):
            try:
                numbers.update(self.catalogue.layout(self.connection, layout_id))
            except StoreDamagedError:
                self.damaged_layouts += 1
        numbers.update(number for (number,) in _LOOSE_SERIES_OF_STREAM.rows(self.connection, stream_id=stream.id))
        return list(self.series(numbers).values())

    def has_match(self, stream: Stream) -> bool:
        """Whether the stream has a series that is asked for."""
        for (layout_id,) in _LAYOUTS_OF_STREAM.rows(self.connection, stream_id=stream.id):
            try:
                if self.columns(layout_id):
                    return True
            except StoreDamagedError:
                self.damaged_layouts += 1
        numbers = [number for (number,) in _LOOSE_SERIES_OF_STREAM.rows(self.connection, stream_id=stream.id)]
        return bool(numbers and self.series(numbers))
