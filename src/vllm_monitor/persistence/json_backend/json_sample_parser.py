"""JSON lines of samples as samples again; see ``json_samples`` for their fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.codecs.text_column import from_text_column
from vllm_monitor.persistence.json_backend.json_samples import PYTHON_TYPES, layout_name
from vllm_monitor.persistence.json_backend.json_values import bits_from_json, text_of
from vllm_monitor.persistence.pending import LooseSeries
from vllm_monitor.persistence.samples.sample_rows import SeriesName
from vllm_monitor.persistence.samples.scrape_codec import Bits

__all__ = ["ParsedLayout", "ParsedSample", "ParsedScrape", "SampleParser"]

_MOST_SERIES = 100_000


class ParsedLayout(NamedTuple):
    """A line that says what the columns of a layout are."""

    name: str
    columns: tuple[SeriesName, ...]


class ParsedScrape(NamedTuple):
    """A line with the values of a layout."""

    origin: str | None
    sequence: int
    time_ms: int
    target: str
    source: str
    layout: ParsedLayout
    bits: Bits
    present: NDArray[np.bool_] | None


class ParsedSample(NamedTuple):
    """A line with one sample."""

    origin: str | None
    sequence: int
    position: int | None
    time_ms: int
    series: LooseSeries
    value: float
    code: int
    metadata_json: str | None


class SampleParser:
    """Reads the lines of one file, in order.

    Args:
        definitions: Reads the layout lines of all files. Asked once, when a line needs a layout that no line before it
            in its file has said: layouts are repeated, and have the same name wherever they are written.
    """

    def __init__(self, definitions: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._definitions: Callable[[], Iterable[Mapping[str, Any]]] | None = definitions
        self._layouts: dict[str, ParsedLayout] = {}
        self._series: dict[tuple[str, str, str, str], LooseSeries] = {}

    def parse(self, fields: Mapping[str, Any]) -> ParsedScrape | ParsedSample | None:
        """What a line says; ``None`` when it only says what a layout is.

        Raises:
            StoreDamagedError: When it makes no sense.
        """
        try:
            if "series" in fields:
                self._define(fields)
                return None
            return self._scrape(fields) if "layout" in fields else self._sample(fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreDamagedError("a line of samples lacks a field", hint="The line is set aside.") from error

    def _define(self, fields: Mapping[str, Any]) -> None:
        columns = fields["series"]
        if layout_name(columns) == fields["layout"] and fields["layout"] not in self._layouts:
            self._layouts[fields["layout"]] = ParsedLayout(
                fields["layout"],
                tuple(SeriesName(metric_type, name, text_of(tags), kind) for name, tags, kind, metric_type in columns),
            )

    def layout(self, name: str) -> ParsedLayout:
        """The layout of a name.

        Raises:
            StoreDamagedError: When no line says what it is.
        """
        if name not in self._layouts and self._definitions is not None:
            for definition in self._definitions():
                self._define(definition)
            self._definitions = None
        if name not in self._layouts:
            raise StoreDamagedError(f"no line says what layout {name} is", hint="The line is set aside.")
        return self._layouts[name]

    def _scrape(self, fields: Mapping[str, Any]) -> ParsedScrape:
        layout = self.layout(fields["layout"])
        bits, present = bits_from_json(fields["values"])
        if len(bits) != len(layout.columns):
            raise StoreDamagedError("a scrape does not fit its layout", hint="The line is set aside.")
        return ParsedScrape(
            fields.get("origin"),
            _whole(fields["sequence"]),
            _whole(fields["time_ms"]),
            from_text_column(fields["target"]),
            from_text_column(fields["source"]),
            layout,
            bits,
            present,
        )

    def _sample(self, fields: Mapping[str, Any]) -> ParsedSample:
        bits, present = bits_from_json([fields["value"]])
        if present is not None:
            raise StoreDamagedError("a sample has no value", hint="The line is set aside.")
        position = fields.get("position")
        return ParsedSample(
            fields.get("origin"),
            _whole(fields["sequence"]),
            None if position is None else _whole(position),
            _whole(fields["time_ms"]),
            self._loose_series(fields),
            float(bits.view(np.float64)[0]),
            PYTHON_TYPES.index(fields.get("python_type", "float")),
            text_of(fields["metadata"]) if "metadata" in fields else None,
        )

    def _loose_series(self, fields: Mapping[str, Any]) -> LooseSeries:
        key = (fields["target"], fields["metric_type"], fields["metric_name"], text_of(fields["tags"]))
        known = self._series.get(key)
        if known is None:
            if len(self._series) > _MOST_SERIES:
                self._series.clear()
            target, metric_type, metric_name = map(from_text_column, key[:3])
            known = LooseSeries(target, metric_type, metric_name, {}, key[3])
            self._series[key] = known
        return known


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value
