"""The numbers that names have in the store. Used by the one writer only, inside its transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Table, insert, select

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.codecs.value_codec import encode_value
from vllm_monitor.persistence.pending import LooseSeries
from vllm_monitor.persistence.samples.sample_rows import SeriesName, layout_fingerprint
from vllm_monitor.records import Layout, MetricKind, Series, metric_type_of

__all__ = ["Identities", "labels_json", "layout_of_series", "series_name"]

_MOST_REMEMBERED = 500_000
_NAMES_PER_QUERY = 500


def labels_json(labels: tuple[tuple[str, str], ...]) -> str:
    """The labels of a scraped series as stored: an object, or pairs when a faulty page repeats a label."""
    tags = dict(labels)
    return encode_value(tags if len(tags) == len(labels) else labels)


class Identities:
    """Looks names up, adds those that are new, and remembers.

    What it remembers may come from a transaction that is then rolled back, so a rollback must be followed by
    :meth:`forget`.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start again with nothing remembered."""
        self._targets: dict[str, int] = {}
        self._streams: dict[tuple[str, str], int] = {}
        self._series: dict[str, int] = {}
        self._loose: dict[int, tuple[LooseSeries, int, int]] = {}
        self._layouts: dict[Layout, int] = {}
        self._used: set[tuple[str, int, int]] = set()

    def bound(self) -> None:
        """Forget everything when it has become too much (series that come and go)."""
        if max(len(self._series), len(self._loose), len(self._used), len(self._layouts) * 100) > _MOST_REMEMBERED:
            self.forget()

    def stream(self, connection: Connection, target: str, source: str) -> int:
        """The id of a source of a target."""
        known = self._streams.get((target, source))
        if known is None:
            target_id = self._targets.get(target)
            if target_id is None:
                target_id = _row_id(connection, schema.targets, target=to_text_column(target))
                self._targets[target] = target_id
            known = _row_id(connection, schema.streams, target_id=target_id, source=to_text_column(source))
            self._streams[target, source] = known
        return known

    def layout(self, connection: Connection, stream_id: int, layout: Layout) -> int:
        """The id of a layout that a stream uses."""
        known = self._layouts.get(layout)
        if known is None:
            known = self._layout_id(connection, [series_name(series) for series in layout.series])
            self._layouts[layout] = known
        self._note_layout(connection, stream_id, known)
        return known

    def layout_of_names(self, connection: Connection, stream_id: int, names: Sequence[SeriesName]) -> int:
        """The id of a layout that a stream uses, by the names of its series."""
        known = self._layout_id(connection, names)
        self._note_layout(connection, stream_id, known)
        return known

    def series_of_names(self, connection: Connection, stream_id: int, names: Sequence[SeriesName]) -> list[int]:
        """The ids of series that a stream has as single samples."""
        numbers = self._series_ids(connection, names)
        for series_id in numbers:
            self._note_series(connection, stream_id, series_id)
        return numbers

    def _layout_id(self, connection: Connection, names: Sequence[SeriesName]) -> int:
        text = json.dumps(self._series_ids(connection, names), separators=(",", ":"))
        return _row_id(connection, schema.layouts, fingerprint=layout_fingerprint(text), series_ids=text)

    def _note_layout(self, connection: Connection, stream_id: int, layout_id: int) -> None:
        if ("layout", stream_id, layout_id) not in self._used:
            _note(connection, schema.stream_layouts, stream_id=stream_id, layout_id=layout_id)
            self._used.add(("layout", stream_id, layout_id))

    def _note_series(self, connection: Connection, stream_id: int, series_id: int) -> None:
        if ("series", stream_id, series_id) not in self._used:
            _note(connection, schema.stream_series, stream_id=stream_id, series_id=series_id)
            self._used.add(("series", stream_id, series_id))

    def loose(self, connection: Connection, all_series: Iterable[LooseSeries]) -> dict[int, tuple[int, int]]:
        """``id()`` of each series to its stream and series number."""
        wanted = {id(series): series for series in all_series}
        new = [series for key, series in wanted.items() if key not in self._loose]
        if new:
            rows = [
                SeriesName(
                    to_text_column(s.metric_type), to_text_column(s.metric_name), s.tags_json, MetricKind.UNKNOWN.value
                )
                for s in new
            ]
            for series, series_id in zip(new, self._series_ids(connection, rows), strict=True):
                stream_id = self.stream(connection, series.target, "")
                self._note_series(connection, stream_id, series_id)
                # The series itself is kept too, so that its id() cannot be given to another one.
                self._loose[id(series)] = (series, stream_id, series_id)
        return {key: self._loose[key][1:] for key in wanted}

    def _series_ids(self, connection: Connection, rows: Sequence[SeriesName]) -> list[int]:
        names = [row.fingerprint for row in rows]
        missing = {name: row for name, row in zip(names, rows, strict=True) if name not in self._series}
        if missing:
            self._find_series(connection, missing)
            new = [{"fingerprint": name, **row._asdict()} for name, row in missing.items() if name not in self._series]
            if new:
                connection.execute(insert(schema.series), new)
                self._find_series(connection, missing)
        return [self._series[name] for name in names]

    def _find_series(self, connection: Connection, names: Iterable[str]) -> None:
        table = schema.series
        wanted = list(names)
        for start in range(0, len(wanted), _NAMES_PER_QUERY):
            query = select(table.c.fingerprint, table.c.id).where(
                table.c.fingerprint.in_(wanted[start : start + _NAMES_PER_QUERY])
            )
            self._series.update((name, number) for name, number in connection.execute(query))


def series_name(series: Series) -> SeriesName:
    """What names a scraped series."""
    return SeriesName(
        metric_type_of(series.name).value, to_text_column(series.name), labels_json(series.labels), series.kind.value
    )


def _row_id(connection: Connection, table: Table, **values: object) -> int:
    """The id of the row with these values, which is added when it is missing."""
    unique = {name: values[name] for name in values if name != "series_ids"}
    query = select(table.c.id).where(*(table.c[name] == value for name, value in unique.items()))
    found = connection.execute(query).scalar()
    if found is None:
        connection.execute(insert(table), values)
        found = connection.execute(query).scalar_one()
    return int(found)


def _note(connection: Connection, table: Table, **values: int) -> None:
    """Add a row of numbers unless it is there."""
    where = [table.c[name] == value for name, value in values.items()]
    if connection.execute(select(*table.primary_key.columns).where(*where)).first() is None:
        connection.execute(insert(table), values)


def layout_of_series(
    connection: Connection, stream_id: int, series_ids: Sequence[int], *, is_loose: bool = False
) -> int:
    """The id of a layout by the ids of its series, noted for a stream unless that is one of single samples."""
    text = json.dumps(list(series_ids), separators=(",", ":"))
    layout_id = _row_id(connection, schema.layouts, fingerprint=layout_fingerprint(text), series_ids=text)
    if not is_loose:
        _note(connection, schema.stream_layouts, stream_id=stream_id, layout_id=layout_id)
    return layout_id
