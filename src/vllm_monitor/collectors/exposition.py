"""The parser of metrics pages: Prometheus text format and its OpenMetrics flavour.

A server prints the same series names in the same order on every scrape. So each parser keeps the previous
page's lines: lines that did not change keep their value, lines that changed behind the same prefix need one
``float()``, and only a page whose series changed is read in full. The incremental result always equals what
a fresh parser returns for the same page.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from dataclasses import dataclass
from itertools import compress
from operator import ne

from vllm_monitor.collectors.sample_lines import (
    MAX_LINE_BYTES,
    kind_of,
    parse_rest,
    parse_sample,
    read_type_line,
)
from vllm_monitor.errors import NotAMetricsPageError, PageTooLargeError
from vllm_monitor.records import Layout, MetricKind, Series

__all__ = ["PageParser", "ParsedPage", "intern_layout"]

MAX_LINES = 100_000
"""A page with more lines is refused; it bounds the memory that a hostile page can cost."""

# Lines that hold no sample: comments, blanks, dropped or malformed lines. No line begins with this prefix.
_IGNORED = -1
_NO_PREFIX = b"\n"


@dataclass(frozen=True, slots=True)
class ParsedPage:
    """One page of metrics, read.

    Args:
        layout: The series, in the order of the page; the same object as long as the series stay the same.
        values: One float64 per series.
        malformed_lines: Lines that are no sample; they were skipped.
        truncated: The page ends in the middle of a line; that line was not believed.
    """

    layout: Layout
    values: array[float]
    malformed_lines: int
    truncated: bool


class PageParser:
    """Parses the pages of one target, one after the other. Not for several threads at once."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._prefixes: list[bytes] = []  # by line
        self._columns: list[int] = []  # by line
        self._series: dict[bytes, Series | None] = {}  # by prefix; None for a dropped series
        self._kinds: dict[bytes, MetricKind] = {}
        self._page = ParsedPage(Layout(()), array("d"), 0, truncated=False)

    def parse(self, page: bytes) -> ParsedPage:
        """Read a page.

        Raises:
            NotAMetricsPageError: When the page holds no sample at all.
            PageTooLargeError: When it has more lines than any server's page.
        """
        if len(page) > MAX_LINES and page.count(b"\n") > MAX_LINES:
            raise PageTooLargeError(
                f"the page has more than {MAX_LINES} lines",
                hint="check that the URL is the metrics page of a vLLM server, which has some hundred lines",
            )
        lines = page.split(b"\n")
        truncated = bool(lines.pop().strip())
        if self._lines and len(lines) == len(self._lines) and self._page.truncated == truncated:
            parsed = self._parse_changes(lines, may_be_long=len(page) > MAX_LINE_BYTES)
            if parsed is not None:
                return parsed
        return self._parse_whole(page, lines, truncated=truncated)

    def _parse_changes(self, lines: list[bytes], *, may_be_long: bool) -> ParsedPage | None:
        """The page, when it differs from the previous one in nothing but values."""
        changed = list(map(ne, lines, self._lines))
        new, prefixes = list(compress(lines, changed)), list(compress(self._prefixes, changed))
        read = None if may_be_long else _read_together(new, prefixes)
        if read is None:
            read = _read_one_by_one(new, prefixes)
        if read is None:
            return None
        values = self._page.values[:]
        for column, value in zip(compress(self._columns, changed), read, strict=True):
            values[column] = value
        self._lines = lines
        page = self._page
        self._page = ParsedPage(page.layout, values, page.malformed_lines, page.truncated)
        return self._page

    def _parse_whole(self, page: bytes, lines: list[bytes], *, truncated: bool) -> ParsedPage:
        if page[:512].lstrip().startswith(b"<"):
            raise _not_metrics(page)
        self._learn_kinds(lines)
        known = self._series
        prefixes: list[bytes] = []
        columns: list[int] = []
        series: list[Series] = []
        values = array("d")
        malformed = 0
        for line in lines:
            prefix, value = b"", 0.0
            found: Series | None = None
            if line and line[0] != 35 and not line.isspace():  # 35 is "#"
                try:
                    prefix, found, value = self._parse_line(line, known)
                except ValueError:
                    malformed += 1
            if found is None:
                prefixes.append(_NO_PREFIX)
                columns.append(_IGNORED)
            else:
                prefixes.append(prefix)
                columns.append(len(series))
                series.append(found)
                values.append(value)
        if not series:
            raise _not_metrics(page)
        layout = self._layout_of(series)
        self._lines, self._prefixes, self._columns = lines, prefixes, columns
        # Only what this page holds, so that churning series cannot fill the memory; the interned series, so
        # that a hundred targets with the same page hold them once.
        self._series = {
            prefix: layout.series[column]
            for prefix, column in zip(prefixes, columns, strict=True)
            if column != _IGNORED
        }
        self._page = ParsedPage(layout, values, malformed, truncated)
        return self._page

    def _parse_line(self, line: bytes, known: dict[bytes, Series | None]) -> tuple[bytes, Series | None, float]:
        if len(line) <= MAX_LINE_BYTES:
            cut = line.rfind(b" ") + 1
            prefix = line[:cut]
            found = known.get(prefix)
            if found is not None:
                return prefix, found, parse_rest(line[cut:])
        name, labels, position, value = parse_sample(line)
        while line[position : position + 1] in {b" ", b"\t"}:
            position += 1
        prefix = line[:position]
        kind = kind_of(name, self._kinds)
        return prefix, None if kind is None else Series(name.decode("ascii"), labels, kind), value

    def _learn_kinds(self, lines: list[bytes]) -> None:
        declared = (read_type_line(line) for line in lines if line.startswith(b"#"))
        kinds = dict(pair for pair in declared if pair is not None)
        if kinds != self._kinds:
            # A family that gains or changes its type changes series we may know already.
            self._kinds = kinds
            self._series = {}

    def _layout_of(self, series: list[Series]) -> Layout:
        layout = self._page.layout
        if len(layout.series) == len(series) and all(a is b for a, b in zip(layout.series, series, strict=True)):
            return layout
        return intern_layout(series)


def _read_together(lines: list[bytes], prefixes: list[bytes]) -> list[float] | None:
    """The values of lines that begin with these prefixes; ``None`` when one needs a closer look.

    No line costs a step of Python's here: that is half the time of a page on which hundreds of values change.
    """
    if not all(map(bytes.startswith, lines, prefixes)):
        return None
    rests = list(map(bytes.removeprefix, lines, prefixes))
    # Underscores are Python's; everything else that float() reads is a number on a page, too.
    if b"_" in b"".join(rests):
        return None
    try:
        return list(map(float, rests))
    except ValueError:
        return None


def _read_one_by_one(lines: list[bytes], prefixes: list[bytes]) -> list[float] | None:
    """The same for lines with timestamps and exemplars, too; ``None`` when the series have changed."""
    values = []
    for line, prefix in zip(lines, prefixes, strict=True):
        if not line.startswith(prefix) or len(line) > MAX_LINE_BYTES:
            return None
        rest = line[len(prefix) :]
        try:
            values.append(_read_value(rest))
        except ValueError:
            return None
    return values


def _read_value(rest: bytes) -> float:
    if b"_" not in rest:
        try:
            return float(rest)
        except ValueError:
            pass  # it may have a timestamp or an exemplar
    return parse_rest(rest)


_interned: weakref.WeakValueDictionary[str, Layout] = weakref.WeakValueDictionary()
_interned_lock = threading.Lock()


def intern_layout(series: list[Series]) -> Layout:
    """The one layout object of these series and kinds in this process; forgotten when nobody holds it."""
    layout = Layout(series)
    with _interned_lock:
        return _interned.setdefault(layout.fingerprint, layout)


def _not_metrics(page: bytes) -> NotAMetricsPageError:
    start = page[:512].lstrip().lower()
    if not start:
        what, hint = "an empty page", "the server may still be starting; check that the URL ends in the right path"
    elif start.startswith(b"<"):
        what, hint = "an HTML page", "check the port and the path: metrics of vLLM are at http://HOST:PORT/metrics"
    elif start.startswith((b"{", b"[")):
        what, hint = "JSON", "check the path: metrics of vLLM are at http://HOST:PORT/metrics"
    elif start.startswith(b"#"):
        what, hint = "a page of comments without a sample", "check that the server's metrics are switched on"
    else:
        what, hint = "a text without a single sample", "check the port and the path: is this a vLLM server?"
    return NotAMetricsPageError(f"{what} instead of metrics", hint=hint)
