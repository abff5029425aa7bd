"""The lines that the part inside a server writes, as samples, requests and notes.

They come from a file that anybody may have damaged: what does not have the shape of our own lines is passed over.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_monitor.collectors.exposition import intern_layout
from vllm_monitor.records import EngineNote, Layout, MetricKind, RequestSummary, Series

__all__ = ["ENGINE_METRICS", "note_of", "rejected_of", "requests_of", "samples_of"]

PREFIX = "vllm_monitor_engine_"
ENGINE_METRICS = {
    "vllm_monitor_engine_in_flight_requests": "Requests given to an engine and not got back whole.",
    "vllm_monitor_engine_oldest_request_seconds": "Age of the oldest request in flight.",
    "vllm_monitor_engine_step_age_seconds": "Time since the last step of any engine.",
    "vllm_monitor_engine_stalled_seconds": "How long no step has come although requests are in flight.",
    "vllm_monitor_engine_largest_step_gap_seconds": "Longest time between two steps since the sample before.",
    "vllm_monitor_engine_lost_steps_total": "Steps that the buffer inside the server had no room for.",
    "vllm_monitor_engine_lost_lines_total": "Lines that were not written: no disk took them.",
    "vllm_monitor_engine_missing_lines_total": "Lines that were written, and not there any more when they were read.",
    "vllm_monitor_engine_faults_total": "Faults of our own part inside the server.",
    "vllm_monitor_engine_cpu_seconds_total": "CPU that our own part inside the server has used.",
    "vllm_monitor_engine_record_seconds": "Median time of a recent call on the server's event loop.",
    "vllm_monitor_engine_paused": "Whether a lever of ours has paused the engines; absent until one was moved.",
    "vllm_monitor_engine_rejected_requests_total": "Requests refused before an engine saw them, by reason.",
    "vllm_monitor_engine_steps_total": "Steps of an engine.",
    "vllm_monitor_engine_finished_requests_total": "Requests that have finished.",
}
"""Names that are made here, and what they mean. Beside them are the counters, gauges and histograms of the server's own
metrics, under the same names with ``vllm_monitor_engine_`` for ``vllm:``, as counted inside."""

_OF_PROCESS = {
    "in_flight": ("in_flight_requests", MetricKind.GAUGE),
    "oldest_request_seconds": ("oldest_request_seconds", MetricKind.GAUGE),
    "step_age_seconds": ("step_age_seconds", MetricKind.GAUGE),
    "stalled_seconds": ("stalled_seconds", MetricKind.GAUGE),
    "largest_step_gap_seconds": ("largest_step_gap_seconds", MetricKind.GAUGE),
    "lost_steps": ("lost_steps_total", MetricKind.COUNTER),
    "lost_lines": ("lost_lines_total", MetricKind.COUNTER),
    "missing_lines": ("missing_lines_total", MetricKind.COUNTER),
    "faults": ("faults_total", MetricKind.COUNTER),
    "cpu_seconds": ("cpu_seconds_total", MetricKind.COUNTER),
    "record_seconds": ("record_seconds", MetricKind.GAUGE),
    "paused": ("paused", MetricKind.GAUGE),
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")
_MOST_SERIES = 20_000
_MOST_REASONS = 50
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,17})?(e-[0-9]{1,2})?")
_MOST_BOUNDS_TEXT = 10_000
_MOST_TEXT = 200
_MOST_REQUESTS = 10_000

_Labels = tuple[tuple[str, str], ...]


def samples_of(line: Mapping[str, Any], api_server: str) -> tuple[Layout, array[float]]:
    """A line of totals as a row of samples.

    Args:
        line: Totals, as the part inside wrote them.
        api_server: The label of that name.
    """
    series: list[Series] = []
    values = array("d")
    ours: _Labels = (("api_server", api_server),)
    for name, (metric, kind) in _OF_PROCESS.items():
        value = _number(line.get(name))
        if value is not None:
            series.append(Series(PREFIX + metric, ours, kind))
            values.append(value)
    for reason, refused in rejected_of(line).items():
        labels: _Labels = (*ours, ("reason", reason))
        series.append(Series(PREFIX + "rejected_requests_total", labels, MetricKind.COUNTER))
        values.append(refused)
    for engine, totals in _entries(line.get("engines")):
        labels = (*ours, ("engine", engine))
        for metric, extra, kind, value in _readings(totals):
            if len(values) < _MOST_SERIES:
                series.append(Series(PREFIX + metric, tuple(sorted((*labels, *extra))), kind))
                values.append(value)
    return intern_layout(series), values


def rejected_of(line: Mapping[str, Any]) -> dict[str, int]:
    """Requests that were refused since the process began, by reason; those of our gate begin with ``gate_``."""
    counts = {reason: _whole(count) for reason, count in _numbers(line.get("rejected"))}
    known = {reason: count for reason, count in counts.items() if count is not None and count >= 0}
    return dict(list(known.items())[:_MOST_REASONS])


def requests_of(line: Mapping[str, Any], target: str, model: str, line_id: str) -> list[RequestSummary]:
    """A line of finished requests, which is columns of the same length; those that say no time are left out.

    Args:
        line: Requests, as the part inside wrote them.
        target: Their server.
        model: What it serves.
        line_id: Names the line among all lines; the requests' ids begin with it.
    """
    columns = {name: column for name, column in line.items() if isinstance(column, list)}
    length = min(len(columns.get("id", ())), _MOST_REQUESTS)
    rows = ({name: column[place] for name, column in columns.items() if place < len(column)} for place in range(length))
    engine = _whole(line.get("engine"))
    found = (_request_of(row, target, model, engine, f"{line_id}-{place}") for place, row in enumerate(rows))
    return [request for request in found if request is not None]


def _request_of(
    row: Mapping[str, Any], target: str, model: str, engine: int | None, request_id: str
) -> RequestSummary | None:
    """One of them.

    Its time to first token is what is left of its duration without the time between first and last token; so it has in
    it what the front end itself needed, as its client saw it.
    """
    ended, duration, decode = (_number(row.get(name)) for name in ("ended", "duration_seconds", "decode_seconds"))
    arrived = 0.0 if ended is None else ended - (duration or 0.0)
    if not 0 < arrived < 1e11:
        return None
    further = {name: _number(row.get(name)) for name in ("prefill_seconds", "decode_seconds", "max_tokens")}
    output_tokens, cached_tokens = _whole(row.get("output_tokens")), _whole(row.get("cached_tokens"))
    return RequestSummary(
        timestamp=arrived,
        model=model,
        finish_reason=_text(row.get("reason")),
        prompt_tokens=_whole(row.get("prompt_tokens")),
        output_tokens=output_tokens,
        cached_tokens=None if cached_tokens is None or cached_tokens < 0 else cached_tokens,
        queue_seconds=_number(row.get("queue_seconds")),
        time_to_first_token_seconds=None if duration is None or decode is None else max(0.0, duration - decode),
        inter_token_seconds=_number(row.get("inter_token_seconds")) if (output_tokens or 0) > 1 else None,
        duration_seconds=duration,
        preemptions=_whole(row.get("preemptions")),
        engine=engine,
        target=target,
        metadata={
            "server_request_id": _text(row.get("id")),
            **{name: value for name, value in further.items() if value is not None},
        },
        request_id=request_id,
    )


def note_of(line: Mapping[str, Any]) -> EngineNote | None:
    """A line of a rare fact; ``None`` when it says no time."""
    at = _number(line.get("t"))
    if at is None or not 0 < at < 1e11:
        return None
    facts = {
        _text(name): _text(value) if isinstance(value, str) else value
        for name, value in line.items()
        if name not in ("n", "t", "kind") and (isinstance(value, str | bool | list) or _number(value) is not None)
    }
    return EngineNote(at, _text(line.get("kind")), facts)


def _readings(totals: Mapping[str, Any]) -> Iterator[tuple[str, _Labels, MetricKind, float]]:
    for group, kind, ending in (("counters", MetricKind.COUNTER, "_total"), ("gauges", MetricKind.GAUGE, "")):
        for name, value in _numbers(totals.get(group)):
            if _NAME.fullmatch(name):
                yield name.removesuffix(ending) + ending, (), kind, value
    for reason, value in _numbers(totals.get("finished")):
        yield "request_success_total", (("finished_reason", reason),), MetricKind.COUNTER, value
    histograms = totals.get("histograms")
    for name, histogram in _entries(histograms):
        if _NAME.fullmatch(name):
            yield from _buckets(name, histogram)


def _buckets(name: str, histogram: Mapping[str, Any]) -> Iterator[tuple[str, _Labels, MetricKind, float]]:
    bounds = [
        float(bound) for bound in _text(histogram.get("bounds"), _MOST_BOUNDS_TEXT).split() if _DECIMAL.fullmatch(bound)
    ]
    counts, total = histogram.get("counts"), _number(histogram.get("sum"))
    if not isinstance(counts, list) or len(counts) != len(bounds) + 1 or total is None:
        return
    so_far = 0.0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        here = _number(count)
        if here is None or here < 0:
            return
        so_far += here
        le = "+Inf" if bound == math.inf else repr(bound)
        yield f"{name}_bucket", (("le", le),), MetricKind.HISTOGRAM, so_far
    yield f"{name}_count", (), MetricKind.HISTOGRAM, so_far
    yield f"{name}_sum", (), MetricKind.HISTOGRAM, total


def _entries(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if isinstance(entry, Mapping):
                yield _text(name), entry


def _numbers(value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            number = _number(entry)
            if number is not None:
                yield _text(name), number


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300:
        return float(value)
    return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or abs(number) > 1e15 else int(number)


def _text(value: Any, most: int = _MOST_TEXT) -> str:
    """Text that every store can keep, and not too much of it."""
    return value[:most].encode("utf-8", "replace").decode() if isinstance(value, str) else ""
