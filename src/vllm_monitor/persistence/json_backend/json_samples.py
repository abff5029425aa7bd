"""Samples of the index as JSON lines, a scrape or a single sample to the line.

======================  ==============================================================================================
field                   meaning
======================  ==============================================================================================
``origin``              the store that the sample first arrived in; missing when that is this one
``sequence``            number of the row that it arrived in: the name of the samples across stores
``position``            place of a single sample in that row; missing when it follows from the order of the lines
``time_ms``             unix milliseconds
``target``, ``source``  the server, and which page of it (scrapes)
``layout``, ``values``  scrapes: which layout line says what the values are of; one value per series
``metric_type`` ...     single samples: what they are of (``metric_name``, ``tags``), ``value``, ``python_type`` when
                        it was no float, ``metadata`` when there is any
======================  ==============================================================================================

A roll-up (file ``rollups.jsonl``) is a line with its columns, names in the place of numbers, and ``payload`` in base64.
A layout line has ``layout`` and ``series`` (name, labels, kind and type of each column). It stands before the first
line that needs it, and is repeated, so that no single damage makes the values of many lines meaningless; any of the
files may say it. Values are as in ``json_values``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.sample_values import FLOAT_CODE, TYPE_OF_CODE
from vllm_monitor.persistence.json_backend.json_lines import encode_line
from vllm_monitor.persistence.json_backend.json_values import bits_to_json, nested, text_of
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, RollupRow
from vllm_monitor.persistence.samples.blocks.codec import block_reader
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, decode_loose_block
from vllm_monitor.persistence.samples.loose_codec import LooseRow
from vllm_monitor.persistence.samples.sample_rows import MetricsRow, RowDecoder, SeriesCatalogue, SeriesName

__all__ = ["PYTHON_TYPES", "ROLLUP_NUMBERS", "Names", "SampleLines", "layout_name"]

Name = TypeVar("Name")

_MOST_SERIES = 200_000
_USES_BEFORE_REPEATS = (0, 4, 32)
_USES_BETWEEN_REPEATS = 256
_NUMBERS_PER_QUERY = 500

ROLLUP_NUMBERS = ("step_seconds", "tier", "start_ms", "end_ms", "buckets", "samples")
"""The columns of a roll-up that mean the same in every store."""

PYTHON_TYPES = tuple(kind.__name__ for kind in TYPE_OF_CODE)
"""What ``python_type`` may say, by type byte."""


def layout_name(columns: Sequence[Any]) -> str:
    """The name of a layout: 16 hexadecimal digits of its columns, so that it is the same wherever it is written."""
    return hashlib.blake2b(text_of(list(columns)).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Names:
    """What numbers of the index stand for. Forget it when what it has read is rolled back."""

    def __init__(self) -> None:
        self.catalogue = SeriesCatalogue()
        self._streams: dict[int, tuple[str, str]] = {}
        self._origins: dict[int, str] = {}
        self._series: dict[int, SeriesName] = {}
        self._layouts: dict[int, tuple[str, list[Any]]] = {}

    def stream(self, connection: Connection, stream_id: int) -> dict[str, str]:
        """Target and source of a stream, as their columns hold them."""
        if stream_id not in self._streams:
            streams, targets = schema.streams, schema.targets
            query = select(streams.c.id, targets.c.target, streams.c.source).join_from(
                streams, targets, streams.c.target_id == targets.c.id
            )
            self._streams = {row.id: (row.target, row.source) for row in connection.execute(query)}
        target, source = _known(self._streams, stream_id, "stream")
        return {"target": target, "source": source}

    def origin(self, connection: Connection, origin_id: int) -> str:
        """The id of the store that a number of ``origins`` stands for."""
        if origin_id not in self._origins:
            self._origins = {row.id: row.store_id for row in connection.execute(select(schema.origins))}
        return _known(self._origins, origin_id, "origin")

    def series(self, connection: Connection, numbers: Iterable[int]) -> dict[int, SeriesName]:
        """What names some series, as their columns hold it."""
        missing = sorted({number for number in numbers if number not in self._series})
        if len(self._series) > _MOST_SERIES:
            self._series.clear()
            missing = sorted(set(numbers))
        table = schema.series
        for start in range(0, len(missing), _NUMBERS_PER_QUERY):
            query = select(table).where(table.c.id.in_(missing[start : start + _NUMBERS_PER_QUERY]))
            for row in connection.execute(query):
                self._series[row.id] = SeriesName(row.metric_type, row.metric_name, row.tags, row.kind)
        return self._series

    def layout(self, connection: Connection, layout_id: int) -> tuple[str, list[Any]]:
        """Name and columns (name, labels, kind and type of each) of a layout."""
        if layout_id not in self._layouts:
            numbers = self.catalogue.layout(connection, layout_id)
            known = self.series(connection, numbers)
            names = [_known(known, number, "series") for number in numbers]
            columns = [[name.metric_name, nested(name.tags), name.kind, name.metric_type] for name in names]
            self._layouts[layout_id] = (layout_name(columns), columns)
        return self._layouts[layout_id]


class SampleLines:
    """Makes the lines of one file; layouts are written before they are first used in it, and again ever more rarely.

    Args:
        names: What the numbers stand for.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._uses: dict[str, int] = {}

    def of_rows(self, connection: Connection, rows: Sequence[MetricsRow]) -> Iterator[bytes]:
        """The lines of rows of ``metrics``, which are ordered by id.

        Raises:
            StoreDamagedError: When one of them cannot be read: a line must not be lost silently.
        """
        streams: dict[int, list[MetricsRow]] = {}
        for row in rows:
            streams.setdefault(row.stream_id, []).append(row)
        found: list[tuple[int, list[bytes]]] = []
        for stream_id, of_stream in streams.items():
            decoder = RowDecoder(connection, self._names.catalogue)
            place = self._names.stream(connection, stream_id)
            for scrape in decoder.scrapes(of_stream):
                fields = {"sequence": scrape.row_id, "time_ms": scrape.time_ms, **place}
                found.append((scrape.row_id, self._scrape(connection, fields, scrape.layout_id, scrape.bits, None)))
            for row_id, loose in decoder.loose(of_stream):
                samples = self._single(connection, place["target"], loose)
                found.append((row_id, [encode_line({"sequence": row_id, **fields}) for fields in samples]))
            if decoder.damaged:
                raise StoreDamagedError("the index has rows that cannot be read", hint="Run vllm-monitor check.")
        found.sort(key=itemgetter(0))
        for _, lines in found:
            yield from lines

    def of_block(self, connection: Connection, block: BlockRow) -> Iterator[bytes]:
        """The lines of a sealed block.

        Raises:
            StoreDamagedError: When it cannot be read.
        """
        block.verify()
        origin = {"origin": self._names.origin(connection, block.origin_id)}
        place = self._names.stream(connection, block.stream_id)
        if block.kind == BlockKind.LOOSE:
            loose = decode_loose_block(block.payload)
            keys = zip(loose.sequences.tolist(), loose.positions.tolist(), strict=True)
            samples = self._single(connection, place["target"], loose)
            for (sequence, position), fields in zip(keys, samples, strict=True):
                yield encode_line({**origin, "sequence": sequence, "position": position, **fields})
            return
        reader = block_reader(block.payload)
        columns = range(reader.column_count)
        bits, present = reader.columns(columns), reader.present(columns)
        rows = zip(reader.sequences().tolist(), reader.times_ms().tolist(), strict=True)
        for at, (sequence, time_ms) in enumerate(rows):
            fields = {**origin, "sequence": sequence, "time_ms": time_ms, **place}
            mask = None if present is None else present[at]
            yield from self._scrape(connection, fields, block.layout_id, bits[at], mask)

    def of_rollup(self, connection: Connection, row: RollupRow) -> Iterator[bytes]:
        """The lines of a roll-up, whose payload stays as it is.

        Raises:
            StoreDamagedError: When it cannot be read.
        """
        row.verify()
        name, columns = self._names.layout(connection, row.layout_id)
        yield from self._definition(name, columns)
        numbers = {field: getattr(row, field) for field in ROLLUP_NUMBERS}
        place = self._names.stream(connection, row.stream_id)
        payload = base64.b64encode(row.payload).decode("ascii")
        origin = self._names.origin(connection, row.origin_id)
        yield encode_line({"origin": origin, **numbers, **place, "layout": name, "payload": payload})

    def _scrape(
        self,
        connection: Connection,
        fields: dict[str, Any],
        layout_id: int,
        bits: NDArray[np.uint64],
        present: NDArray[np.bool_] | None,
    ) -> list[bytes]:
        name, columns = self._names.layout(connection, layout_id)
        line = encode_line({**fields, "layout": name, "values": bits_to_json(bits, present)})
        return [*self._definition(name, columns), line]

    def _definition(self, name: str, columns: list[Any]) -> list[bytes]:
        """The line of a layout where it is due, before a line that uses it."""
        uses = self._uses.get(name, 0)
        self._uses[name] = uses + 1
        if uses % _USES_BETWEEN_REPEATS and uses not in _USES_BEFORE_REPEATS:
            return []
        return [encode_line({"layout": name, "series": columns})]

    def _single(self, connection: Connection, target: str, loose: LooseRow | LooseBlock) -> Iterator[dict[str, Any]]:
        """The fields of single samples, but for what names them."""
        series_ids = loose.series_ids.tolist()
        known = self._names.series(connection, series_ids)
        times, values = loose.times_ms.tolist(), bits_to_json(loose.values.view(np.uint64))
        for at, series_id in enumerate(series_ids):
            series = _known(known, series_id, "series")
            fields = {
                "time_ms": times[at],
                "target": target,
                "metric_type": series.metric_type,
                "metric_name": series.metric_name,
                "tags": nested(series.tags),
                "value": values[at],
            }
            if loose.codes[at] != FLOAT_CODE:
                fields["python_type"] = PYTHON_TYPES[loose.codes[at]]
            if at in loose.metadata:
                fields["metadata"] = nested(loose.metadata[at])
            yield fields


def _known(names: Mapping[int, Name], number: int, what: str) -> Name:
    try:
        return names[number]
    except KeyError:
        raise StoreDamagedError(f"{what} {number} is missing in the index", hint="Run vllm-monitor check.") from None
