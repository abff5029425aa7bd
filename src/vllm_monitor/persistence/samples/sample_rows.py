"""Rows of ``metrics`` turned back into samples."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.tags import identity_labels, sorted_tags
from vllm_monitor.persistence.codecs.text_column import from_text_column
from vllm_monitor.persistence.codecs.value_codec import decode_value, encode_value
from vllm_monitor.persistence.samples.loose_codec import LooseRow, decode_loose
from vllm_monitor.persistence.samples.read_cache import ReadCache
from vllm_monitor.persistence.samples.scrape_codec import KEYFRAME, LOOSE, Bits, decode_run, decode_scrape, row_checksum
from vllm_monitor.records import MetricKind, Series

__all__ = [
    "DecodedScrape",
    "MetricsRow",
    "RowDecoder",
    "SeriesCatalogue",
    "SeriesName",
    "StoredSeries",
    "layout_fingerprint",
    "stored_series",
]

_MOST_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """A row of ``series``.

    ``label_key`` is the same for the same labels, told apart by type as well: 1 and True are different tags.
    """

    metric_type: str
    series: Series
    tags: dict[str, Any]
    label_key: Hashable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        labels: Any = self.series.labels
        plain = all(type(name) is str and type(value) is str for name, value in labels)
        object.__setattr__(self, "label_key", labels if plain else encode_value(sorted_tags(self.tags)))


class MetricsRow(NamedTuple):
    """A row of ``metrics``."""

    id: int
    stream_id: int
    kind: int
    start_ms: int
    end_ms: int
    layout_id: int
    previous_id: int
    samples: int
    payload: bytes
    checksum: int


class SeriesName(NamedTuple):
    """What names a row of ``series``, as its columns hold it."""

    metric_type: str
    metric_name: str
    tags: str
    kind: str

    @property
    def fingerprint(self) -> str:
        """Names the series across stores, and shows damage to its row."""
        return _digest(json.dumps(self, separators=(",", ":")))


def layout_fingerprint(series_ids: str) -> str:
    """Names a layout within a store, and shows damage to its row."""
    return _digest(series_ids)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class DecodedScrape(NamedTuple):
    """A scrape as stored: its columns are those of the layout."""

    row_id: int
    time_ms: int
    layout_id: int
    bits: Bits


class SeriesCatalogue:
    """Series and layouts by number; what was read once is remembered, since it never changes. Thread-safe.

    It belongs to a database, and so does ``read_cache``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[int, StoredSeries] = {}
        self._layouts: dict[int, tuple[int, ...]] = {}
        self._matches: dict[tuple[int, Hashable], tuple[tuple[int, StoredSeries], ...]] = {}
        self._matched = 0
        self.read_cache = ReadCache()

    def layout(self, connection: Connection, layout_id: int) -> tuple[int, ...]:
        """The series numbers of a layout, in column order.

        Raises:
            StoreDamagedError: When there is no such layout.
        """
        known = self._layouts.get(layout_id)
        if known is None:
            table = schema.layouts
            query = select(table.c.fingerprint, table.c.series_ids).where(table.c.id == layout_id)
            row = connection.execute(query).first()
            if row is None or row.fingerprint != layout_fingerprint(row.series_ids):
                raise StoreDamagedError(f"layout {layout_id} is damaged", hint="Run the store's check.")
            known = tuple(json.loads(row.series_ids))
            with self._lock:
                self._bound()
                self._layouts[layout_id] = known
        return known

    def series(self, connection: Connection, numbers: Iterable[int]) -> dict[int, StoredSeries]:
        """Rows of ``series`` by number; those that are missing or damaged are left out."""
        wanted = set(numbers)
        found = {number: self._series.get(number) for number in wanted}
        missing = sorted(number for number, stored in found.items() if stored is None)
        table = schema.series
        for start in range(0, len(missing), 500):
            for row in connection.execute(select(table).where(table.c.id.in_(missing[start : start + 500]))):
                name = SeriesName(row.metric_type, row.metric_name, row.tags, row.kind)
                if name.fingerprint != row.fingerprint:
                    continue
                found[row.id] = stored = stored_series(name)
                with self._lock:
                    self._bound()
                    self._series[row.id] = stored
        return {number: stored for number, stored in found.items() if stored is not None}

    def matches(
        self, connection: Connection, layout_id: int, question: Hashable, takes: Callable[[StoredSeries], bool]
    ) -> tuple[tuple[int, StoredSeries], ...]:
        """The columns of a layout whose series pass ``takes``; remembered under ``question``.

        Raises:
            StoreDamagedError: When there is no such layout.
        """
        known = self._matches.get((layout_id, question))
        if known is None:
            numbers = self.layout(connection, layout_id)
            series = self.series(connection, numbers)
            known = tuple(
                (column, series[number])
                for column, number in enumerate(numbers)
                if number in series and takes(series[number])
            )
            with self._lock:
                if self._matched > _MOST_REMEMBERED:
                    self._matches.clear()
                    self._matched = 0
                self._matches[layout_id, question] = known
                self._matched += 1 + len(known)
        return known

    def _bound(self) -> None:
        if len(self._series) > _MOST_REMEMBERED or len(self._layouts) > _MOST_REMEMBERED // 100:
            self._series.clear()
            self._layouts.clear()


def stored_series(row: SeriesName) -> StoredSeries:
    """The series that a row names.

    Raises:
        StoreDamagedError: When its text is damaged.
    """
    tags = decode_value(row.tags)
    kind = MetricKind(row.kind) if row.kind in set(MetricKind) else MetricKind.UNKNOWN
    labels = tags if isinstance(tags, tuple) else sorted_tags(tags)
    series = Series(from_text_column(row.metric_name), identity_labels(labels), kind)
    return StoredSeries(from_text_column(row.metric_type), series, dict(tags))


class RowDecoder:
    """Decodes rows of ``metrics`` in the order of their ids, and skips and counts what is damaged.

    Args:
        connection: Where rows are looked up that a difference builds on.
        catalogue: For the number of columns.
    """

    def __init__(self, connection: Connection, catalogue: SeriesCatalogue) -> None:
        self.damaged = 0
        self._connection = connection
        self._catalogue = catalogue

    def scrapes(self, rows: Sequence[MetricsRow]) -> Iterator[DecodedScrape]:
        """The scrapes among the rows of one stream, which are ordered by id."""
        decoded: dict[int, Bits] = {}
        scrapes = [row for row in rows if row.kind != LOOSE]
        for chain in _chains(scrapes):
            try:
                decoded.update(zip((row.id for row in chain), self._decode_chain(chain), strict=True))
            except StoreDamagedError:
                decoded.update(self._decode_as_far_as_good(chain))
        for row in scrapes:
            bits = decoded.get(row.id)
            if bits is None:
                self.damaged += 1
            else:
                yield DecodedScrape(row.id, row.start_ms, row.layout_id, bits)

    def loose(self, rows: Sequence[MetricsRow]) -> Iterator[tuple[int, LooseRow]]:
        """The rows of single samples among the rows, with their ids."""
        for row in rows:
            if row.kind != LOOSE:
                continue
            try:
                self._verify(row)
                yield row.id, decode_loose(row.payload, row.start_ms)
            except StoreDamagedError:
                self.damaged += 1

    def _decode_chain(self, chain: Sequence[MetricsRow]) -> Bits:
        """Rows of which each builds on the one before, as (rows, columns): together, which is a fifth of the price."""
        first = chain[0]
        columns = len(self._catalogue.layout(self._connection, first.layout_id))
        for row in chain:
            self._verify(row)
            if (row.kind == KEYFRAME) != (row.previous_id == 0) or row.layout_id != first.layout_id:
                raise StoreDamagedError("a difference without its base", hint="Run the store's check.")
        bits = decode_run([row.payload for row in chain], columns)
        if first.previous_id:
            base = self._bits_of(first.previous_id)
            if len(base) != columns:
                raise StoreDamagedError("a difference without its base", hint="Run the store's check.")
            bits[0] ^= base
        return np.bitwise_xor.accumulate(bits, axis=0)

    def _decode_as_far_as_good(self, chain: Sequence[MetricsRow]) -> Iterator[tuple[int, Bits]]:
        """The rows before the damaged one; those behind it are lost with it."""
        for length in range(1, len(chain) + 1):
            try:
                yield chain[length - 1].id, self._decode_chain(chain[:length])[-1]
            except StoreDamagedError:
                return

    def _decode(self, row: MetricsRow, previous: Bits | None) -> Bits:
        self._verify(row)
        columns = len(self._catalogue.layout(self._connection, row.layout_id))
        if (row.kind == KEYFRAME) != (previous is None) or (previous is not None and len(previous) != columns):
            raise StoreDamagedError("a difference without its base", hint="Run the store's check.")
        return decode_scrape(row.payload, columns, previous)

    def _bits_of(self, row_id: int) -> Bits:
        """Decode a row outside the range by walking back to its keyframe."""
        table = schema.metrics
        walk = select(table.c.id, table.c.previous_id).where(table.c.id == row_id).cte("run", recursive=True)
        # Ids only grow along a run; a damaged number must not make the walk go round for ever.
        step = (table.c.id == walk.c.previous_id) & (table.c.id < walk.c.id)
        walk = walk.union_all(select(table.c.id, table.c.previous_id).where(step))
        query = select(table).where(table.c.id.in_(select(walk.c.id))).order_by(table.c.id)
        bits: Bits | None = None
        for row in self._connection.execute(query):
            bits = self._decode(MetricsRow._make(row), bits)
        if bits is None:
            raise StoreDamagedError(f"row {row_id} is missing", hint="Run the store's check.")
        return bits

    def _verify(self, row: MetricsRow) -> None:
        expected = row_checksum(
            row.kind, row.stream_id, row.layout_id, row.previous_id, row.start_ms, row.end_ms, row.payload
        )
        if expected != row.checksum:
            raise StoreDamagedError("a row of metrics fails its checksum", hint="Run the store's check.")


def _chains(rows: Sequence[MetricsRow]) -> list[list[MetricsRow]]:
    """Rows that build on each other, in the order of their ids; those that build on a row taken before are left out.

    A chain begins with a keyframe, or with a row that builds on one which is not among the rows.
    """
    present = {row.id for row in rows}
    chains: list[list[MetricsRow]] = []
    ends: dict[int, list[MetricsRow]] = {}
    for row in rows:
        if row.previous_id in present:
            chain = ends.pop(row.previous_id, None)
            if chain is None:
                continue
        else:
            chain = []
            chains.append(chain)
        chain.append(row)
        ends[row.id] = chain
    return chains
