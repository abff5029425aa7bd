"""docs/recordings.md describes the lines that are written, and its example is one that can be read."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

from tests.docs.pages import DOCS, blocks, code_spans, section, table_rows

from vllm_monitor.collectors import read_recording
from vllm_monitor.collectors.recording_lines import GROUND_TRUTH_KINDS, LineEncoder
from vllm_monitor.core import replay_ticks
from vllm_monitor.records import (
    CanaryObservation,
    EngineNote,
    EngineObservation,
    GpuInfo,
    GpuObservation,
    HealthObservation,
    Layout,
    LoadObservation,
    LogObservation,
    Observation,
    PageObservation,
    PauseObservation,
    ProbeFailure,
    ProcessInfo,
    ProcessObservation,
    RequestSummary,
    Series,
    VersionObservation,
)

PAGE = DOCS / "recordings.md"
TARGET = "http://127.0.0.1:8000"
FAILURE = ProbeFailure("timeout", "no answer")


def one_of_each() -> list[Observation]:
    layout, values = Layout([Series("vllm:num_requests_running")]), array("d", [1.0])
    return [
        PageObservation(target=TARGET, timestamp=1.0, layout=layout, values=values, status=200, malformed_lines=1),
        PageObservation(target=TARGET, timestamp=1.0, failure=FAILURE),
        HealthObservation(target=TARGET, timestamp=1.0, failure=FAILURE),
        CanaryObservation(target=TARGET, timestamp=1.0, failure=FAILURE),
        ProcessObservation(target=TARGET, timestamp=1.0, processes=(ProcessInfo(1, "api", "sleeping", 0.0, 1),)),
        LogObservation(target=TARGET, timestamp=1.0, line="text"),
        VersionObservation(target=TARGET, timestamp=1.0),
        LoadObservation(target=TARGET, timestamp=1.0),
        PauseObservation(target=TARGET, timestamp=1.0),
        GpuObservation(target=TARGET, timestamp=1.0, gpus=(GpuInfo(0, "a GPU"),)),
        EngineObservation(
            target=TARGET,
            timestamp=1.0,
            layout=layout,
            values=values,
            rejected={"gate_limit": 1},
            is_paused=True,
            requests=(RequestSummary(timestamp=1.0),),
            notes=(EngineNote(1.0, "end"),),
            spool="7-5-1",
            line=3,
        ),
    ]


def test_kinds_and_keys() -> None:
    rows = {row[0].strip("`"): set(code_spans(row[1])) for row in table_rows(section(PAGE, "Format"))[1:]}
    encoder = LineEncoder(TARGET)
    lines = [json.loads(encoder.encode(observation)) for observation in one_of_each()]
    lines.append(json.loads(encoder.encode_meta(1.0, 1.0)))
    written: dict[str, set[str]] = {}
    for line in lines:
        written.setdefault(line["kind"], set()).update(line.keys() - {"kind", "ts"})
    assert rows.keys() == written.keys() | GROUND_TRUTH_KINDS
    assert {kind: rows[kind] for kind in written} == written
    (process,) = (line["procs"][0] for line in lines if line["kind"] == "proc")
    assert set(process) <= set(code_spans(section(PAGE, "Format")))


def test_the_example_is_read(tmp_path: Path) -> None:
    (example,) = (block.text for block in blocks(PAGE) if block.language == "jsonl")
    path = tmp_path / "small.jsonl"
    path.write_text(example, encoding="utf-8")
    recording = read_recording(path)
    assert recording.target == TARGET
    assert recording.interval_seconds == 1.0
    assert recording.malformed_lines == 0
    assert not recording.notes
    assert len(recording.observations) == len(example.splitlines()) - 1
    assert [tick.snapshot.condition.value for tick in replay_ticks(recording)][-1] == "ok"
