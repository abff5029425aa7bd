"""The grammar of one line of a page of metrics: name, labels, value; and the kinds of families.

Lines stay bytes until a label has to become text, because most lines are never looked at twice.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from vllm_monitor.records import MetricKind, Series

__all__ = [
    "MAX_LINE_BYTES",
    "infer_kind",
    "kind_of",
    "parse_rest",
    "parse_sample",
    "parse_series_text",
    "parse_value",
    "read_type_line",
]

MAX_LINE_BYTES = 65_536
"""A longer line is malformed; it bounds what a hostile page can make us do."""

# Possessive repeats: nothing here can backtrack, whatever the page holds.
_NAME = re.compile(rb"[ \t]*+([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+")
_LABEL = re.compile(rb'[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\]++|\\.)*+)"[ \t]*+', re.DOTALL)
_TYPE = re.compile(rb"#[ \t]++TYPE[ \t]++([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]++([a-zA-Z]++)[ \t\r]*+\Z")
_ESCAPE = re.compile(rb'\\([\\"n])')
_UNESCAPED = {b"\\": b"\\", b'"': b'"', b"n": b"\n"}

_KINDS = {
    b"counter": MetricKind.COUNTER,
    b"gauge": MetricKind.GAUGE,
    b"histogram": MetricKind.HISTOGRAM,
    b"summary": MetricKind.SUMMARY,
    # OpenMetrics only:
    b"gaugehistogram": MetricKind.HISTOGRAM,
    b"info": MetricKind.GAUGE,
    b"stateset": MetricKind.GAUGE,
}

_SUFFIXES = (
    (b"_bucket", (MetricKind.HISTOGRAM,)),
    (b"_sum", (MetricKind.HISTOGRAM, MetricKind.SUMMARY)),
    (b"_count", (MetricKind.HISTOGRAM, MetricKind.SUMMARY)),
    (b"_total", (MetricKind.COUNTER,)),
    (b"_gsum", (MetricKind.HISTOGRAM,)),
    (b"_gcount", (MetricKind.HISTOGRAM,)),
    (b"_info", (MetricKind.GAUGE,)),
)
_CREATED = b"_created"
_TIMESTAMPED_KINDS = (MetricKind.COUNTER, MetricKind.HISTOGRAM, MetricKind.SUMMARY)


def read_type_line(line: bytes) -> tuple[bytes, MetricKind] | None:
    """The family and the kind that a ``# TYPE`` line declares, or ``None`` for any other comment."""
    match = _TYPE.match(line)
    if match is None:
        return None
    return match.group(1), _KINDS.get(match.group(2).lower(), MetricKind.UNKNOWN)


def kind_of(name: bytes, kinds: Mapping[bytes, MetricKind]) -> MetricKind | None:
    """The kind of a sample's family.

    Args:
        name: The name on the sample line.
        kinds: What the page's ``# TYPE`` lines declare.

    Returns:
        ``None`` for a ``_created`` series: the time at which prometheus_client made a counter, histogram or
        summary. It says nothing about the server, never changes, and is dropped.
    """
    if name.endswith(_CREATED):
        family = name[: -len(_CREATED)]
        if kinds.get(family) in _TIMESTAMPED_KINDS or kinds.get(family + b"_total") is MetricKind.COUNTER:
            return None
    kind = kinds.get(name)
    if kind is not None:
        return kind
    for suffix, allowed in _SUFFIXES:
        if name.endswith(suffix):
            kind = kinds.get(name[: -len(suffix)])
            if kind in allowed:
                return kind
    return MetricKind.UNKNOWN


def parse_value(text: bytes) -> float:
    """A sample's value.

    Raises:
        ValueError: When ``text`` is no number of the text format (Python's underscores, for one, are not).
    """
    if b"_" in text:
        msg = "underscores are no part of a number"
        raise ValueError(msg)
    return float(text)


def parse_rest(rest: bytes) -> float:
    """The value in what follows the labels: ``value [timestamp] [# exemplar]``.

    Raises:
        ValueError: When the value, or a timestamp beside it, is no number.
    """
    before_exemplar, mark, _exemplar = rest.partition(b" # {")
    if not mark:
        before_exemplar = rest.partition(b"\t# {")[0]
    parts = before_exemplar.split()
    if not 1 <= len(parts) <= 2:
        msg = "a sample is a value and perhaps a timestamp"
        raise ValueError(msg)
    if len(parts) == 2:
        parse_value(parts[1])
    return parse_value(parts[0])


def parse_sample(line: bytes) -> tuple[bytes, tuple[tuple[str, str], ...], int, float]:
    """A whole sample line.

    Returns:
        The name, the labels sorted by name, the position at which the value begins, and the value.

    Raises:
        ValueError: When the line is no sample.
    """
    if len(line) > MAX_LINE_BYTES:
        msg = f"longer than {MAX_LINE_BYTES} bytes"
        raise ValueError(msg)
    name, labels, position = _parse_identity(line)
    return name, labels, position, parse_rest(line[position:])


def parse_series_text(text: str, kind: MetricKind = MetricKind.UNKNOWN) -> Series:
    """A series written as ``name{label="value"}``, as recordings hold it.

    Raises:
        ValueError: When the text is no series.
    """
    line = text.encode("utf-8", "surrogatepass")
    if len(line) > MAX_LINE_BYTES:
        msg = f"longer than {MAX_LINE_BYTES} bytes"
        raise ValueError(msg)
    name, labels, position = _parse_identity(line)
    if line[position:].strip():
        msg = "something follows the series"
        raise ValueError(msg)
    return Series(name.decode("ascii"), labels, kind)


def infer_kind(name: str, names: Container[str]) -> MetricKind:
    """The kind that a series most likely has, from names alone; for pages without ``# TYPE`` lines.

    Args:
        name: The name of the series.
        names: All names of the page, to tell a histogram's ``_sum`` from a gauge of that name.
    """
    base, _, suffix = name.rpartition("_")
    if suffix == "total":
        return MetricKind.COUNTER
    if suffix == "bucket" and base + "_count" in names:
        return MetricKind.HISTOGRAM
    if suffix in {"sum", "count"} and base + "_sum" in names and base + "_count" in names:
        return MetricKind.HISTOGRAM if base + "_bucket" in names else MetricKind.SUMMARY
    return MetricKind.GAUGE


def _parse_identity(line: bytes) -> tuple[bytes, tuple[tuple[str, str], ...], int]:
    match = _NAME.match(line)
    if match is None:
        msg = "no metric name"
        raise ValueError(msg)
    name, position = match.group(1), match.end()
    if line[position : position + 1] != b"{":
        if position == match.end(1) and position < len(line):
            msg = "nothing separates the name from the value"
            raise ValueError(msg)
        return name, (), position
    labels, position = _parse_labels(line, position + 1)
    return name, labels, position


def _parse_labels(line: bytes, position: int) -> tuple[tuple[tuple[str, str], ...], int]:
    labels: dict[str, str] = {}
    count = 0
    while True:
        match = _LABEL.match(line, position)
        if match is None:
            break
        labels[match.group(1).decode("ascii")] = _label_text(match.group(2))
        count += 1
        position = match.end()
        if line[position : position + 1] != b",":
            break
        position += 1
    end = _skip_blanks(line, position)
    if line[end : end + 1] != b"}" or len(labels) != count:
        msg = "labels that cannot be read"
        raise ValueError(msg)
    return tuple(sorted(labels.items())), end + 1


def _label_text(raw: bytes) -> str:
    if b"\\" in raw:
        raw = _ESCAPE.sub(lambda match: _UNESCAPED[match.group(1)], raw)
    return raw.decode("utf-8", "replace")


def _skip_blanks(line: bytes, position: int) -> int:
    while line[position : position + 1] in {b" ", b"\t"}:
        position += 1
    return position
