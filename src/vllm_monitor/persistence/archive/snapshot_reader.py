"""Everything that a store holds, read from one view of it: to export a live store, and to import an archive."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, Table, func, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.merged_samples import ScrapeMatrix, StreamName
from vllm_monitor.persistence.codecs.text_column import from_text_column
from vllm_monitor.persistence.records.prediction_scores import score_checksum
from vllm_monitor.persistence.records.rare_rows import RareKind, Row
from vllm_monitor.persistence.samples.block_rows import BlockRow, RollupRow
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock
from vllm_monitor.persistence.samples.decoded_scrapes import fitting, matrix_of_scrapes
from vllm_monitor.persistence.samples.loose_codec import LooseRow
from vllm_monitor.persistence.samples.sample_rows import MetricsRow, RowDecoder, SeriesCatalogue, SeriesName
from vllm_monitor.persistence.samples.scrape_codec import LOOSE
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["Outcome", "SnapshotReader", "SnapshotStream"]

_LOG = logging.getLogger(__name__)
_ROWS_PER_QUERY = 500
_HOT_ROWS_PER_QUERY = 1800
_NONE = np.empty(0, dtype=np.int64)


class SnapshotStream(NamedTuple):
    """A stream of the store that is read, and its number there."""

    id: int
    target: str
    source: str


@dataclass(slots=True)
class Outcome:
    """Whether a block of code met no damage; see ``SnapshotReader.tolerating``."""

    ok: bool = True


class SnapshotReader:
    """Reads a store through one connection, whose view of it must be fixed. Not for several threads at once.

    Args:
        connection: In a transaction, or of a file that nobody writes.
        strict: Raise at the first damage; else it is skipped, counted and logged.
    """

    def __init__(self, connection: Connection, *, strict: bool) -> None:
        self.damaged = 0
        self._connection = connection
        self._strict = strict
        self._catalogue = SeriesCatalogue()
        self._names: dict[int, SeriesName] = {}
        origins = schema.origins
        query = select(origins.c.id, origins.c.store_id)
        self._origins = {int(number): str(name) for number, name in connection.execute(query)}
        if OWN_ORIGIN not in self._origins:  # a store of the first revision, just migrated and never opened
            facts = schema.store_meta
            own = connection.execute(select(facts.c.value).where(facts.c.key == "store_id")).scalar()
            if own is not None:
                self._origins[OWN_ORIGIN] = str(own)

    @contextmanager
    def tolerating(self, what: str) -> Iterator[Outcome]:
        """Skip, count and log what is damaged, unless strict."""
        outcome = Outcome()
        try:
            yield outcome
        except StoreDamagedError as error:
            outcome.ok = False
            self.damaged += 1
            _LOG.warning("%s is damaged and left out: %s", what, error)
            if self._strict:
                raise

    def count(self, table: Table) -> int:
        """The number of rows of a table."""
        return int(self._connection.execute(select(func.count()).select_from(table)).scalar_one())

    def streams(self) -> list[SnapshotStream]:
        """Every stream."""
        streams, targets = schema.streams, schema.targets
        query = select(streams.c.id, targets.c.target, streams.c.source).join_from(streams, targets)
        return [
            SnapshotStream(number, from_text_column(target), from_text_column(source))
            for number, target, source in self._connection.execute(query.order_by(streams.c.id))
        ]

    def origin(self, origin_id: int) -> str:
        """The id of the store that an origin is.

        Raises:
            StoreDamagedError: When there is no such origin.
        """
        if origin_id not in self._origins:
            raise StoreDamagedError(f"there is no origin {origin_id}", hint="Run vllm-monitor check.")
        return self._origins[origin_id]

    def name_of(self, stream: SnapshotStream, origin_id: int) -> StreamName:
        """What names a stream and an origin across stores. Raises as :meth:`origin`."""
        return StreamName(self.origin(origin_id), stream.target, stream.source)

    def blocks(self, stream: SnapshotStream, start_ms: int, end_ms: int) -> Iterator[BlockRow]:
        """Sealed blocks with samples in a range of time, verified; a few are in memory at once."""
        table = schema.blocks
        for row in self._in_range(table, stream, start_ms, end_ms):
            block = BlockRow._make(row)
            if self._is_intact(block):
                yield block

    def rollups(self, stream: SnapshotStream, start_ms: int, end_ms: int) -> Iterator[RollupRow]:
        """Roll-ups in a range of time, verified."""
        table = schema.rollups
        for row in self._in_range(table, stream, start_ms, end_ms):
            rollup = RollupRow._make(row)
            if self._is_intact(rollup):
                yield rollup

    def layout_names(self, layout_id: int) -> list[SeriesName]:
        """The names of the columns of a layout.

        Raises:
            StoreDamagedError: When the layout or one of its series is damaged.
        """
        numbers = self._catalogue.layout(self._connection, layout_id)
        names = self.series_names(numbers)
        return [names[number] for number in numbers]

    def series_names(self, numbers: Sequence[int]) -> dict[int, SeriesName]:
        """The names of series, by number.

        Raises:
            StoreDamagedError: When one is missing or damaged.
        """
        table = schema.series
        missing = sorted(set(numbers) - self._names.keys())
        for at in range(0, len(missing), _ROWS_PER_QUERY):
            query = select(table).where(table.c.id.in_(missing[at : at + _ROWS_PER_QUERY]))
            for row in self._connection.execute(query):
                name = SeriesName(row.metric_type, row.metric_name, row.tags, row.kind)
                if name.fingerprint == row.fingerprint:
                    self._names[row.id] = name
        lost = [number for number in missing if number not in self._names]
        if lost:
            raise StoreDamagedError(f"series {lost[:5]} are missing or damaged", hint="Run vllm-monitor check.")
        return {number: self._names[number] for number in numbers}

    def hot_scrapes(self, stream: SnapshotStream) -> Iterator[ScrapeMatrix]:
        """Scrapes that are not sealed yet, in order of arrival whatever their layouts."""
        decoder = RowDecoder(self._connection, self._catalogue)
        for rows in self._hot_rows(stream, loose=False):
            scrapes = list(decoder.scrapes(rows))
            layouts = {}
            for layout_id in {scrape.layout_id for scrape in scrapes}:
                with self.tolerating(f"layout {layout_id}"):
                    self.layout_names(layout_id)
                    layouts[layout_id] = self._catalogue.layout(self._connection, layout_id)
            scrapes = [scrape for scrape in scrapes if scrape.layout_id in layouts]
            while scrapes:
                fits = fitting(scrapes, layouts)
                matrix = matrix_of_scrapes(scrapes[:fits], layouts)
                names = self.series_names(matrix.series_ids)
                yield ScrapeMatrix(
                    [names[number] for number in matrix.series_ids],
                    matrix.times_ms,
                    matrix.sequences,
                    matrix.bits,
                    matrix.present,
                )
                scrapes = scrapes[fits:]
        self.damaged += decoder.damaged

    def hot_loose(self, stream: SnapshotStream) -> Iterator[LooseBlock]:
        """Single samples that are not sealed yet; their series are numbered as here."""
        decoder = RowDecoder(self._connection, self._catalogue)
        for rows in self._hot_rows(stream, loose=True):
            yield _joined(list(decoder.loose(rows)))
        self.damaged += decoder.damaged

    def records(
        self, kind: RareKind[Any], start_time: float | None, end_time: float | None
    ) -> Iterator[tuple[list[Row], int]]:
        """Rows of a kind in a range of time, verified, some at once, with how many were looked at."""
        table = schema.metadata.tables[kind.table]
        for found in self._pages(table):
            rows = []
            for row in found:
                in_time = (start_time is None or row["timestamp"] >= start_time) and (
                    end_time is None or row["timestamp"] <= end_time
                )
                if in_time:
                    with self.tolerating(f"row {row['id']} of {kind.table}"):
                        kind.verify(row)
                        rows.append(row)
            yield rows, len(found)

    def prediction_scores(self) -> Iterator[dict[str, list[Row]]]:
        """Counts of expired predictions by the store that counted them, verified, some at once."""
        for found in self._pages(schema.prediction_scores):
            by_origin: dict[str, list[Row]] = {}
            for row in found:
                with self.tolerating(f"row {row['id']} of prediction_scores"):
                    if row["checksum"] != score_checksum(row):
                        raise StoreDamagedError("it does not match its checksum", hint="Run vllm-monitor check.")
                    by_origin.setdefault(self.origin(row["origin_id"]), []).append(row)
            yield by_origin

    def _pages(self, table: Table) -> Iterator[list[Row]]:
        last = -(1 << 62)
        while True:
            query = select(table).where(table.c.id > last).order_by(table.c.id).limit(_ROWS_PER_QUERY)
            rows: list[Row] = [
                {str(name): value for name, value in row.items()} for row in self._connection.execute(query).mappings()
            ]
            if not rows:
                return
            last = rows[-1]["id"]
            yield rows

    def _in_range(self, table: Table, stream: SnapshotStream, start_ms: int, end_ms: int) -> Iterator[Any]:
        # Numbers first, payloads one by one: a block may be large, and a snapshot must fit into memory.
        wanted = (table.c.stream_id == stream.id, table.c.start_ms <= end_ms, table.c.end_ms >= start_ms)
        order = (table.c.origin_id, table.c.start_ms, table.c.id)
        numbers = self._connection.execute(select(table.c.id).where(*wanted).order_by(*order)).scalars().all()
        for number in numbers:
            row = self._connection.execute(select(table).where(table.c.id == number)).first()
            if row is not None:
                yield row

    def _hot_rows(self, stream: SnapshotStream, *, loose: bool) -> Iterator[list[MetricsRow]]:
        table = schema.metrics
        is_loose = table.c.kind == LOOSE
        wanted = (table.c.stream_id == stream.id, is_loose if loose else ~is_loose)
        last = -1
        while True:
            query = select(table).where(*wanted, table.c.id > last).order_by(table.c.id).limit(_HOT_ROWS_PER_QUERY)
            rows = [MetricsRow._make(row) for row in self._connection.execute(query)]
            if not rows:
                return
            last = rows[-1].id
            yield rows

    def _is_intact(self, row: BlockRow | RollupRow) -> bool:
        with self.tolerating(f"{type(row).__name__} {row.id}") as outcome:
            row.verify()
        return outcome.ok


def _joined(rows: list[tuple[int, LooseRow]]) -> LooseBlock:
    """The single samples of many rows as those of one block."""
    starts = np.cumsum([0, *(len(row.values) for _, row in rows)])
    return LooseBlock(
        np.concatenate([np.full(len(row.values), row_id, dtype=np.int64) for row_id, row in rows] or [_NONE]),
        np.concatenate([np.arange(len(row.values), dtype=np.int64) for _, row in rows] or [_NONE]),
        np.concatenate([row.times_ms for _, row in rows] or [_NONE]),
        np.concatenate([row.series_ids.astype(np.int64) for _, row in rows] or [_NONE]),
        np.concatenate([row.values for _, row in rows] or [_NONE.astype(np.float64)]),
        np.concatenate([row.codes for _, row in rows] or [_NONE.astype(np.uint8)]),
        {
            int(start) + place: text
            for start, (_, row) in zip(starts[:-1], rows, strict=True)
            for place, text in row.metadata.items()
        },
    )
