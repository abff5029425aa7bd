"""The lines of kind ``engine`` in a recording: what our part inside a server told."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vllm_monitor.collectors.exposition import intern_layout
from vllm_monitor.collectors.sample_lines import parse_series_text
from vllm_monitor.records import EngineNote, EngineObservation, MetricKind, RequestSummary, Series

__all__ = ["KINDS_BY_LETTER", "KIND_LETTERS", "decode_engine", "encode_engine"]

KIND_LETTERS = {
    MetricKind.COUNTER: "c",
    MetricKind.GAUGE: "g",
    MetricKind.HISTOGRAM: "h",
    MetricKind.SUMMARY: "s",
    MetricKind.UNKNOWN: "u",
}
KINDS_BY_LETTER = {letter: kind for kind, letter in KIND_LETTERS.items()}
_FIGURES = ("in_flight", "oldest_request_seconds", "step_age_seconds", "stalled_seconds", "lost", "faults")
_REQUEST_FIGURES = (
    "prompt_tokens", "output_tokens", "cached_tokens", "queue_seconds", "time_to_first_token_seconds",
    "inter_token_seconds", "longest_gap_seconds", "duration_seconds", "preemptions", "engine",
)  # fmt: skip


def encode_engine(one: EngineObservation) -> dict[str, Any]:
    """The fields of a line."""
    fields: dict[str, Any] = {"kind": "engine", "ts": one.timestamp, "lat": one.latency_seconds}
    fields |= {"api_server": one.api_server, **{name: getattr(one, name) for name in _FIGURES}}
    if one.rejected:
        fields["rejected"] = dict(one.rejected)
    if one.is_paused is not None:
        fields["is_paused"] = one.is_paused
    if one.requests:
        fields["requests"] = [_request_fields(request) for request in one.requests]
    if one.notes:
        fields["notes"] = [
            {name: value for name, value in asdict(note).items() if value or name != "note_id"} for note in one.notes
        ]
    if one.spool:
        fields |= {"spool": one.spool, "line": one.line}
    if one.layout is not None and one.values is not None:
        fields["kinds"] = "".join(KIND_LETTERS[series.kind] for series in one.layout.series)
        fields["v"] = dict(zip(map(str, one.layout.series), one.values.tolist(), strict=True))
    return fields


def decode_engine(line: Mapping[str, Any], timing: dict[str, Any]) -> EngineObservation:
    """The observation of a line; whatever a damaged one makes fail is raised."""
    layout, values = None, None
    if line.get("v"):
        parsed = [parse_series_text(name) for name in line["v"]]
        kinds = [KINDS_BY_LETTER[letter] for letter in line["kinds"]]
        layout = intern_layout([Series(one.name, one.labels, kind) for one, kind in zip(parsed, kinds, strict=True)])
        values = array("d", line["v"].values())
    return EngineObservation(
        **timing,
        api_server=str(line.get("api_server", "0")),
        layout=layout,
        values=values,
        in_flight=float(line["in_flight"]),
        oldest_request_seconds=_optional(line.get("oldest_request_seconds")),
        step_age_seconds=_optional(line.get("step_age_seconds")),
        stalled_seconds=float(line["stalled_seconds"]),
        lost=int(line["lost"]),
        faults=int(line["faults"]),
        rejected={str(reason): int(count) for reason, count in line.get("rejected", {}).items()},
        is_paused=None if line.get("is_paused") is None else bool(line["is_paused"]),
        requests=tuple(_request(fields, timing["target"]) for fields in line.get("requests", ())),
        notes=tuple(
            EngineNote(float(note["timestamp"]), str(note["kind"]), dict(note["facts"]), str(note.get("note_id", "")))
            for note in line.get("notes", ())
        ),
        spool=str(line.get("spool", "")),
        line=int(line.get("line", 0)),
    )


def _request_fields(request: RequestSummary) -> dict[str, Any]:
    fields = asdict(request)
    return {name: value for name, value in fields.items() if value not in (None, "", {}) and name != "target"}


def _request(fields: Mapping[str, Any], target: str) -> RequestSummary:
    return RequestSummary(
        timestamp=float(fields["timestamp"]),
        model=str(fields.get("model", "")),
        finish_reason=str(fields.get("finish_reason", "")),
        error=str(fields.get("error", "")),
        target=target,
        metadata=dict(fields.get("metadata", {})),
        request_id=fields.get("request_id"),
        **{name: _optional(fields.get(name)) for name in _REQUEST_FIGURES},
    )


def _optional(value: Any) -> Any:
    """A number as it is; whatever else is an error."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        msg = f"{value!r} is no number"
        raise TypeError(msg)
    return value
