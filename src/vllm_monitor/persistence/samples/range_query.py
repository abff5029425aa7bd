"""Range queries with a step: from samples, or from roll-ups where these say the same with less to read."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import ConfigurationError, StoreDamagedError
from vllm_monitor.persistence.codecs.arguments import checked_filter, checked_number
from vllm_monitor.persistence.results import SeriesData
from vllm_monitor.persistence.samples.aggregation import (
    Aggregation,
    Need,
    Segment,
    combine,
    growth_of,
    histogram_quantile,
    segment_of_samples,
)
from vllm_monitor.persistence.samples.gathering import Gathering, JoinedTimes, SeriesKey, series_key
from vllm_monitor.persistence.samples.rolled_up import (
    RollupHead,
    first_raw_ms,
    first_rollup_ms,
    read_rollup,
    rollup_heads,
)
from vllm_monitor.persistence.samples.rollup_codec import Form, Rollup
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS, TEN_MINUTES_SECONDS
from vllm_monitor.persistence.samples.sample_reader import SampleReader
from vllm_monitor.persistence.samples.sample_rows import StoredSeries
from vllm_monitor.persistence.samples.selection import EARLIEST_MS, LATEST_MS, Scope, Selector, Stream
from vllm_monitor.persistence.samples.summaries import MINUTE_MS, MOST_MINUTES_APART, Buckets, is_counter
from vllm_monitor.records import Series

__all__ = ["LONG_RANGE_MS", "RangeQuery", "make_range_query"]

_LOG = logging.getLogger(__name__)

LONG_RANGE_MS = 3_600_000
"""From this length on, roll-ups are used where they give the same answer."""

_LONGEST_STEP_SECONDS = 1e10  # three centuries; numbers of milliseconds stay within 64 bits
_LOOK_BACK_MS = MOST_MINUTES_APART * MINUTE_MS


@dataclass(frozen=True, slots=True)
class RangeQuery:
    """A question; the range is widened to whole buckets.

    Args:
        selector: Which series, and the range.
        step_ms: Length of a bucket.
        aggregation: What becomes of its samples.
        quantile: Which, for ``Aggregation.QUANTILE``.
    """

    selector: Selector
    step_ms: int
    aggregation: Aggregation
    quantile: float | None = None

    @property
    def widened(self) -> Selector:
        """What has to be read: whole buckets, and for growth what came just before."""
        start_ms = self.first_bucket_ms
        if self.aggregation.need is Need.GROWTH:
            start_ms = start_ms // MINUTE_MS * MINUTE_MS - _LOOK_BACK_MS
        end_ms = min(LATEST_MS, self.selector.end_ms // self.step_ms * self.step_ms + self.step_ms - 1)
        return replace(self.selector, start_ms=max(EARLIEST_MS, start_ms), end_ms=end_ms)

    @property
    def first_bucket_ms(self) -> int:
        """Where the first bucket begins."""
        return max(EARLIEST_MS, self.selector.start_ms // self.step_ms * self.step_ms)

    def answer(self, reader: SampleReader) -> list[SeriesData]:
        """Ask a reader that was made for :attr:`widened`."""
        rolled = _Rolled(self, reader).segments()
        found = self._raw(reader) if rolled is None else rolled
        series = [self._to_series(target, stored, segments) for target, stored, segments in found if segments]
        answered = [one for one in series if len(one)]
        return answered if self.quantile is None else self._quantiles(answered, self.quantile)

    def _raw(self, reader: SampleReader) -> Iterable[tuple[str, StoredSeries, list[Segment]]]:
        gathering = Gathering()
        for stream in reader.streams():
            reader.gather_sealed(stream, gathering)
            reader.gather_hot(stream, gathering)
        reader.gather_memory(gathering)
        joined, buckets = JoinedTimes(), Buckets(self.step_ms)
        return ((found.target, found.stored, self.segments_of(*found.in_order(joined), buckets)) for found in gathering)

    def segments_of(self, times_ms: NDArray[np.int64], values: NDArray[np.float64], buckets: Buckets) -> list[Segment]:
        """What samples in order of time come to."""
        segment = segment_of_samples(times_ms, values, buckets, self.aggregation.need)
        return [] if segment is None else [segment]

    def _to_series(self, target: str, stored: StoredSeries, segments: list[Segment]) -> SeriesData:
        times, values = combine(segments, self.step_ms, self.aggregation, self.first_bucket_ms)
        return SeriesData(target, stored.metric_type, stored.series, dict(stored.tags), times, values)

    def _quantiles(self, buckets: Iterable[SeriesData], quantile: float) -> list[SeriesData]:
        groups: dict[SeriesKey, tuple[StoredSeries, str, dict[float, list[SeriesData]]]] = {}
        for one in buckets:
            bound = _bound_of(one.tags)
            if bound is None:
                continue
            labels = tuple((name, value) for name, value in one.series.labels if name != "le")
            tags = {name: value for name, value in one.tags.items() if name != "le"}
            name = one.series.name.removesuffix("_bucket")
            whole = StoredSeries(one.metric_type, Series(name, labels, one.series.kind), tags)
            group = groups.setdefault(series_key(one.target, whole), (whole, one.target, {}))
            group[2].setdefault(bound, []).append(one)
        answers = []
        for whole, target, by_bound in groups.values():
            times = np.unique(np.concatenate([one.timestamps_ms for ones in by_bound.values() for one in ones]))
            grown = np.zeros((len(by_bound), len(times)))
            bounds = sorted(by_bound)
            for number, bound in enumerate(bounds):
                for one in by_bound[bound]:
                    grown[number, np.searchsorted(times, one.timestamps_ms)] += one.values
            values = histogram_quantile(quantile, np.array(bounds), grown)
            answers.append(SeriesData(target, whole.metric_type, whole.series, dict(whole.tags), times, values))
        return answers


def make_range_query(
    selector: Selector, step_seconds: float, aggregation: str | None, quantile: float | None
) -> RangeQuery:
    """Check the arguments of ``query_range``.

    Raises:
        ConfigurationError: When they make no sense.
    """
    step_seconds = checked_number(step_seconds, "step_seconds")
    step_ms = round(step_seconds * 1000) if abs(step_seconds) < _LONGEST_STEP_SECONDS else 0
    if step_ms < 1:
        raise ConfigurationError(f"a step of {step_seconds} s", hint="Pass a positive number of seconds.")
    name = checked_filter(aggregation, "aggregation") or (Aggregation.AVG if quantile is None else Aggregation.QUANTILE)
    if name not in set(Aggregation):
        raise ConfigurationError(f"there is no aggregation {name!r}", hint=f"Use one of {', '.join(Aggregation)}.")
    chosen = Aggregation(name)
    if (chosen is Aggregation.QUANTILE) != (quantile is not None):
        raise ConfigurationError(
            f"aggregation {chosen} and quantile {quantile} do not go together",
            hint='Pass aggregation="quantile" and a quantile from 0 to 1, or neither.',
        )
    if quantile is not None:
        quantile = checked_number(quantile, "quantile")
        if not 0 <= quantile <= 1:
            raise ConfigurationError(f"there is no quantile {quantile}", hint="Pass a number from 0 to 1.")
        metric_name = selector.metric_name
        if metric_name is None:
            raise ConfigurationError("a quantile of every name", hint="Name the histogram.")
        if not metric_name.endswith("_bucket"):
            selector = replace(selector, metric_name=f"{metric_name}_bucket")
    return RangeQuery(selector, step_ms, chosen, quantile)


class _CannotTellError(Exception):
    """Roll-ups do not give this answer; samples may."""


class _Rolled:
    """Answers a query from roll-ups of what is sealed, and from samples of what is not."""

    def __init__(self, query: RangeQuery, reader: SampleReader) -> None:
        self._query = query
        self._reader = reader
        self._selector = query.widened
        self._need = query.aggregation.need
        self._found: dict[SeriesKey, tuple[str, StoredSeries, list[Segment]]] = {}
        self._ends: dict[SeriesKey, tuple[int, int]] = {}
        self._is_gone = False

    def segments(self) -> list[tuple[str, StoredSeries, list[Segment]]] | None:
        """What was found, or ``None``: read samples instead."""
        scope = self._reader.scope
        if scope is None or self._query.step_ms % MINUTE_MS:
            return None
        by_stream = [(stream, self._heads(scope, stream)) for stream in self._reader.streams()]
        self._is_gone = any(gone for _, (_, gone) in by_stream)
        is_long = self._selector.end_ms - self._selector.start_ms >= LONG_RANGE_MS
        if not (is_long or self._is_gone):
            return None
        try:
            for stream, (heads, _) in by_stream:
                for head in heads:
                    self._add_rollup(scope, stream, head)
            self._add_what_is_not_sealed()
        except _CannotTellError:
            return None
        except StoreDamagedError as error:
            _LOG.warning("a roll-up was skipped for the samples behind it: %s", error)
            return None
        return [self._found[key] for key in sorted(self._found, key=repr)]

    def _heads(self, scope: Scope, stream: Stream) -> tuple[list[RollupHead], bool]:
        """Roll-ups of a stream in the range, and whether some of the samples behind them are gone."""
        start_ms, end_ms = self._selector.start_ms, self._selector.end_ms
        heads = rollup_heads(scope.connection, stream.id, MINUTE_SECONDS, start_ms, end_ms)
        if self._query.step_ms % (TEN_MINUTES_SECONDS * 1000) == 0:
            first_ms = first_rollup_ms(scope.connection, stream.id, MINUTE_SECONDS)
            coarse = rollup_heads(scope.connection, stream.id, TEN_MINUTES_SECONDS, start_ms, end_ms)
            heads = [head for head in coarse if first_ms is None or head.end_ms < first_ms] + heads
        if not heads:
            return [], False
        raw_ms = first_raw_ms(scope.connection, stream.id)
        return heads, raw_ms is None or heads[0].start_ms < raw_ms

    def _add_rollup(self, scope: Scope, stream: Stream, head: RollupHead) -> None:
        columns = scope.columns(head.layout_id)
        if not columns:
            return
        if any(is_counter(stored.series) != (self._need is Need.GROWTH) for _, stored in columns) and (
            self._need is not Need.LAST
        ):
            raise _CannotTellError
        wanted = tuple(column for column, _ in columns)
        count = scope.column_count(head.layout_id)
        rollup = read_rollup(scope.connection, scope.catalogue.read_cache, head, count, wanted)
        seen: set[SeriesKey] = set()
        for place, (_, stored) in enumerate(columns):
            key = series_key(stream.target, stored)
            known = self._ends.get(key)
            if not self._is_gone and (key in seen or (known is not None and head.start_ms <= known[0])):
                raise _CannotTellError  # the same series twice at the same time: only samples tell the order
            if known is not None and known[1] != stream.id and not self._is_gone:
                raise _CannotTellError
            seen.add(key)
            self._ends[key] = head.end_ms, stream.id
            segment = self._segment(rollup, place, head)
            if segment is not None:
                self._found.setdefault(key, (stream.target, stored, []))[2].append(segment)

    def _segment(self, rollup: Rollup, place: int, head: RollupHead) -> Segment | None:
        form = int(rollup.forms[place])  # a counter with a NaN among its samples is kept as a gauge is
        if self._need is not Need.LAST and (form == Form.GAUGE) == (self._need is Need.GROWTH):
            raise _CannotTellError
        there = rollup.present[:, place]
        if not there.any():
            return None
        bucket_ms, lasts = rollup.bucket_ms[there], rollup.last[there, place]
        first = float(rollup.first[place])
        values = lasts
        if self._need is Need.GROWTH:
            values = growth_of(lasts, first, rollup.correction[there, place])
        low = int(np.searchsorted(bucket_ms, self._selector.start_ms // MINUTE_MS * MINUTE_MS))
        high = int(np.searchsorted(bucket_ms, self._selector.end_ms, side="right"))
        if low >= high:
            return None
        within = slice(low, high)
        spread: Iterator[Any] = iter(())
        if self._need is Need.SPREAD:
            spread = (field[there, place][within] for field in (rollup.low, rollup.high, rollup.total, rollup.count))
        first_ms = int(bucket_ms[low])
        last_ms = int(bucket_ms[high - 1]) + (head.step_seconds * 1000 - 1 if head.step_seconds > MINUTE_SECONDS else 0)
        return Segment(bucket_ms[within], values[within], first, float(lasts[high - 1]), first_ms, last_ms, *spread)

    def _add_what_is_not_sealed(self) -> None:
        gathering = Gathering()
        for stream in self._reader.streams():
            self._reader.gather_hot(stream, gathering)
        self._reader.gather_memory(gathering)
        joined, buckets = JoinedTimes(), Buckets(self._query.step_ms)
        for found in gathering:
            key = series_key(found.target, found.stored)
            times, values = found.in_order(joined)
            known = self._ends.get(key)
            if known is not None and int(times[0]) <= known[0] and not self._is_gone:
                raise _CannotTellError
            entry = self._found.setdefault(key, (found.target, found.stored, []))
            entry[2].extend(self._query.segments_of(times, values, buckets))


def _bound_of(tags: Mapping[str, Any]) -> float | None:
    try:
        bound = float(tags["le"])
    except (KeyError, TypeError, ValueError):
        return None
    return None if math.isnan(bound) else bound
