from __future__ import annotations

import gzip
import json
import math
import signal
import struct
import subprocess
import sys
import tempfile
from array import array
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_monitor.collectors.recording import RecordingWriter, read_recording
from vllm_monitor.errors import RecordingError
from vllm_monitor.records import (
    CanaryObservation,
    EngineNote,
    EngineObservation,
    GpuInfo,
    GpuObservation,
    HealthObservation,
    HostPressure,
    Layout,
    LoadObservation,
    LogObservation,
    MetricKind,
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

TARGET = "http://127.0.0.1:8000"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.floats(0, 2e9)
latencies = st.floats(0, 100)
reals = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**62)
timing: dict[str, Any] = {
    "target": st.sampled_from([TARGET, "http://other:1"]),
    "timestamp": times,
    "latency_seconds": latencies,
}
failures = st.builds(ProbeFailure, st.sampled_from(["timeout", "refused", "http", "other"]), texts)
series = st.builds(
    Series,
    st.from_regex(r"[a-z_:][a-z0-9_:]{0,8}", fullmatch=True),
    st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,3}", fullmatch=True), texts, max_size=2).map(
        lambda labels: tuple(sorted(labels.items()))
    ),
    st.sampled_from(MetricKind),
)


@st.composite
def good_pages(draw: st.DrawFn) -> PageObservation:
    columns = draw(st.lists(series, min_size=1, max_size=4))  # duplicates are possible
    values = draw(st.lists(st.floats(), min_size=len(columns), max_size=len(columns)))
    fixed = draw(st.fixed_dictionaries(timing))
    return PageObservation(
        **fixed,
        layout=Layout(columns),
        values=array("d", values),
        status=200,
        malformed_lines=draw(st.integers(0, 5)),
    )


processes = st.builds(
    ProcessInfo,
    pid=counts,
    role=texts.filter(bool),
    state=texts.filter(bool),
    cpu_seconds=reals,
    rss_bytes=counts,
    vms_bytes=counts,
    threads=counts,
    fds=st.none() | counts,
    voluntary_switches=st.none() | counts,
    involuntary_switches=st.none() | counts,
)
pressures = st.builds(
    HostPressure,
    cpu_percent=st.none() | reals,
    load1=st.none() | reals,
    memory_available_bytes=st.none() | counts,
    cpu_some_avg10=st.none() | reals,
    memory_some_avg10=st.none() | reals,
    io_some_avg10=st.none() | reals,
)
gpus = st.builds(
    GpuInfo,
    index=counts,
    name=texts,
    memory_used_bytes=st.none() | counts,
    utilisation_ratio=st.none() | reals,
    throttle_reasons=st.none() | counts,
)


@st.composite
def engine_tellings(draw: st.DrawFn) -> EngineObservation:
    columns = draw(st.lists(series, max_size=4, unique_by=str))
    values = draw(st.lists(reals, min_size=len(columns), max_size=len(columns)))
    fixed = draw(st.fixed_dictionaries(timing))
    request = RequestSummary(
        timestamp=draw(times),
        model=draw(texts),
        finish_reason=draw(texts),
        prompt_tokens=draw(st.none() | counts),
        duration_seconds=draw(st.none() | reals),
        target=fixed["target"],
        metadata=draw(st.dictionaries(texts, reals, max_size=2)),
        request_id=draw(st.none() | texts.filter(bool)),
    )
    note = EngineNote(draw(times), draw(texts), draw(st.dictionaries(texts, counts | texts, max_size=2)), draw(texts))
    spool = draw(texts)
    return EngineObservation(
        **fixed,
        api_server=draw(texts),
        layout=Layout(columns) if columns else None,
        values=array("d", values) if columns else None,
        in_flight=draw(reals),
        oldest_request_seconds=draw(st.none() | reals),
        step_age_seconds=draw(st.none() | reals),
        stalled_seconds=draw(reals),
        lost=draw(counts),
        faults=draw(counts),
        rejected=draw(st.dictionaries(texts, counts, max_size=2)),
        is_paused=draw(st.none() | st.booleans()),
        requests=draw(st.sampled_from([(), (request,)])),
        notes=draw(st.sampled_from([(), (note,)])),
        spool=spool,
        line=draw(st.integers(1, 10**14)) if spool else 0,
    )


observations = st.one_of(
    good_pages(),
    st.builds(PageObservation, **timing, status=st.none() | st.integers(100, 599), failure=failures),
    st.builds(HealthObservation, **timing, status=st.integers(100, 599)),
    st.builds(HealthObservation, **timing, failure=failures),
    st.builds(
        CanaryObservation, **timing, ok=st.just(value=True), status=st.just(200), time_to_first_token_seconds=latencies
    ),
    st.builds(
        CanaryObservation,
        **timing,
        status=st.none() | st.integers(100, 599),
        failure=failures,
        time_to_first_token_seconds=st.none() | latencies,
    ),
    st.builds(LogObservation, **timing, line=texts),
    st.builds(
        ProcessObservation,
        **timing,
        processes=st.lists(processes, max_size=3).map(tuple),
        host=pressures,
        listen_queue=st.none() | counts,
        established=st.none() | counts,
        exit_code=st.none() | st.integers(-64, 255),
    ),
    st.builds(
        VersionObservation,
        **timing,
        version=st.none() | texts,
        models=st.lists(texts, max_size=2).map(tuple),
        models_failure=st.none() | failures,
    ),
    st.builds(LoadObservation, **timing, server_load=st.none() | reals),
    st.builds(PauseObservation, **timing, is_paused=st.none() | st.booleans()),
    st.builds(GpuObservation, **timing, gpus=st.lists(gpus, max_size=2).map(tuple)),
    engine_tellings(),
)


def comparable(value: Any) -> Any:
    """By type and bits, any NaN equal to any other (JSON has one); the kinds of series count."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else struct.pack("d", value)
    if isinstance(value, array):
        return tuple(map(comparable, value))
    if isinstance(value, Layout):
        return value.fingerprint
    if isinstance(value, tuple):
        return tuple(map(comparable, value))
    if is_dataclass(value):
        return (type(value), *(comparable(getattr(value, field.name)) for field in fields(value)))
    return value


@settings(max_examples=60, deadline=None)
@given(st.lists(observations, max_size=8), st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_what_is_written_is_read_back(written: list[Observation], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"r{suffix}"
        with RecordingWriter(path, target=TARGET, started_at=1.5, interval_seconds=0.5) as writer:
            writer.write(*written[:3])
            writer.write(*written[3:])
        recording = read_recording(path)
    in_order = sorted(written, key=lambda one: one.visible_at)
    assert list(map(comparable, recording.observations)) == list(map(comparable, in_order))
    assert (recording.target, recording.interval_seconds) == (TARGET, 0.5)
    assert (recording.malformed_lines, recording.notes) == (0, ())


def lines_of(path: Path) -> list[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        return [json.loads(line) for line in file]


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_what_is_written_is_the_common_format(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    layout = Layout([Series("a", (("x", 'q"'),), MetricKind.COUNTER), Series("b")])
    with RecordingWriter(path, target=TARGET, started_at=1.0) as writer:
        writer.write(
            PageObservation(
                target=TARGET, timestamp=1.0, latency_seconds=0.5, layout=layout, values=array("d", [1, 2]), status=200
            ),
            HealthObservation(target=TARGET, timestamp=2.0, failure=ProbeFailure("timeout", "slow")),
            CanaryObservation(target=TARGET, timestamp=3.0, latency_seconds=0.1, ok=True, status=200),
            LogObservation(target=TARGET, timestamp=4.0, line="hello"),
        )
    meta, page, health, canary, log = lines_of(path)
    assert (meta["kind"], meta["target"]) == ("meta", TARGET)
    assert page["v"] == {'a{x="q\\""}': 1.0, "b": 2.0}
    assert (page["kind"], page["ts"], page["lat"], page["status"]) == ("metrics", 1.0, 0.5, 200)
    assert (health["status"], health["lat"]) == ("timeout: slow", 0.0)
    assert (canary["kind"], canary["tag"], canary["e2e"]) == ("client", "canary", 0.1)
    assert log == {"kind": "log", "ts": 4.0, "line": "hello"}


def test_an_existing_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", "precious")
    with pytest.raises(RecordingError, match="exists") as caught:
        RecordingWriter(path, target=TARGET, started_at=0)
    assert caught.value.hint
    assert path.read_text() == "precious\n"
    RecordingWriter(path, target=TARGET, started_at=0, overwrite=True).close()
    assert lines_of(path)[0]["kind"] == "meta"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be written"):
        RecordingWriter(tmp_path / "missing" / "r.jsonl", target=TARGET, started_at=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported() -> None:
    with pytest.raises(RecordingError, match="No space left"):
        RecordingWriter(Path("/dev/full"), target=TARGET, started_at=0, overwrite=True)


KILLED = """
import sys, time
from pathlib import Path
from vllm_monitor.collectors.recording import RecordingWriter
from vllm_monitor.records import LogObservation
writer = RecordingWriter(Path(sys.argv[1]), target="t", started_at=0)
for number in range(10_000_000):
    writer.write(LogObservation(target="t", timestamp=float(number), line="x" * 50))
    print(number, flush=True)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_kill_loses_nothing_that_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 200:
                process.send_signal(signal.SIGKILL)
                break
        written = [int(line), *map(int, process.stdout.read().split())][-1]
    recording = read_recording(path)
    assert recording.malformed_lines == 0
    assert len(recording.observations) >= written + 1
    assert [one.timestamp for one in recording.observations] == [float(n) for n in range(len(recording.observations))]


def log_line(number: float) -> dict[str, object]:
    return {"kind": "log", "ts": number, "line": f"line {number}"}


def test_a_cut_file_is_read_up_to_the_cut(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "r.jsonl", *map(log_line, range(300)))
    plain.write_bytes(plain.read_bytes()[:-5])
    recording = read_recording(plain)
    assert len(recording.observations) == 299
    assert recording.malformed_lines == 0
    assert "incomplete" in recording.notes[0]

    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress(b"".join(json.dumps(log_line(n)).encode() + b"\n" for n in range(3000))))
    packed.write_bytes(packed.read_bytes()[:-2000])
    recording = read_recording(packed)
    assert 0 < len(recording.observations) < 3000
    assert any("cut off or damaged" in note for note in recording.notes)


def test_results_come_in_the_order_in_which_they_were_there(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "r.jsonl",
        {"kind": "health", "ts": 1.0, "status": 200, "lat": 2.0},
        {"kind": "log", "ts": 2.0, "line": "first"},
        {"kind": "log", "ts": 2.0, "line": "second"},
        {"kind": "client", "ts": 1.0, "tag": "canary", "status": 200, "err": None, "ttft": 0.1, "e2e": 0.2},
        {"kind": "log", "ts": 3.0, "line": "third"},
    )
    seen = read_recording(path).observations
    assert [one.visible_at for one in seen] == [1.2, 2.0, 2.0, 3.0, 3.0]
    assert [getattr(one, "line", type(one).__name__) for one in seen] == [
        "CanaryObservation",
        "first",
        "second",
        "HealthObservation",
        "third",
    ]


def test_ground_truth_is_never_delivered(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "foreign_s1.jsonl",
        {"kind": "client", "ts": 1, "tag": "load", "status": 500, "err": "x", "e2e": 1.0},
        {"kind": "client", "ts": 1, "tag": "canary", "status": 200, "err": None},
        {"kind": "event", "ts": 1, "event": "inject"},
        {"kind": "thermometer", "ts": 1, "celsius": 20},
    )
    recording = read_recording(path)
    assert recording.observations == ()
    assert recording.malformed_lines == 0
    assert recording.target == "foreign_s1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("TimeoutError:", "timeout"),
        ("ClientConnectorError:Cannot connect to host 127.0.0.1:8145 ssl:default [Connect call failed", "refused"),
        ("ClientConnectorError:Cannot connect to host x:80 ssl:default [Name or service not known]", "dns"),
        ("ServerDisconnectedError:Server disconnected", "reset"),
        ("ClientOSError:[Errno 104] Connection reset by peer", "reset"),
        ("ClientPayloadError:Response payload is not completed", "truncated"),
        ("SomethingNew: oh", "other"),
        (503, "http"),
        (None, "other"),
    ],
)
def test_recorded_failures_have_a_kind(tmp_path: Path, status: object, kind: str) -> None:
    path = write_lines(tmp_path / "r.jsonl", {"kind": "metrics", "ts": 1, "status": status, "lat": 0.1, "v": {}})
    (page,) = read_recording(path).observations
    assert isinstance(page, PageObservation)
    assert page.failure is not None
    assert page.failure.kind == kind
    assert page.layout is None


def test_pages_with_the_same_series_share_a_layout(tmp_path: Path) -> None:
    first = {"a_total": 1, "h_bucket": 1, "h_sum": 1, "h_count": 1, "g": float("nan"), "s_sum": 1, "s_count": 2}
    path = write_lines(
        tmp_path / "r.jsonl",
        *({"kind": "metrics", "ts": n, "status": 200, "lat": 0, "v": first} for n in range(2)),
        {"kind": "metrics", "ts": 3, "status": 200, "lat": 0, "v": {**first, "new": 1}},
        {"kind": "metrics", "ts": 4, "status": 200, "lat": 0, "v": first},
    )
    one, two, three, four = read_recording(path).observations
    assert isinstance(one, PageObservation)
    assert isinstance(two, PageObservation)
    assert isinstance(three, PageObservation)
    assert isinstance(four, PageObservation)
    assert one.layout is not None
    assert one.layout is two.layout is four.layout
    assert one.layout is not three.layout
    assert one.values is not None
    assert math.isnan(one.values[4])
    kinds = {series.name: series.kind for series in one.layout.series}
    assert kinds["a_total"] is MetricKind.COUNTER
    assert kinds["h_sum"] is MetricKind.HISTOGRAM
    assert kinds["s_count"] is MetricKind.SUMMARY
    assert kinds["g"] is MetricKind.GAUGE


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"ts": 1}',
        '{"kind": "log"}',
        '{"kind": 7, "ts": 1}',
        '{"kind": "log", "ts": 1}',
        '{"kind": "log", "ts": "now", "line": "x"}',
        '{"kind": "log", "ts": NaN, "line": "x"}',
        '{"kind": "health", "ts": 1, "status": 200, "lat": -1}',
        '{"kind": "health", "ts": 1, "status": [], "lat": 1}',
        '{"kind": "metrics", "ts": 1, "status": 200, "lat": 0, "v": {"a": "x"}}',
        '{"kind": "metrics", "ts": 1, "status": 200, "lat": 0, "v": {"a b": 1}}',
        '{"kind": "metrics", "ts": 1, "status": 200, "lat": 0, "v": [1]}',
        '{"kind": "metrics", "ts": 1, "status": 200, "lat": 0, "v": {"a": 1' + "0" * 400 + "}}",
        '{"kind": "metrics", "ts": 1, "status": 200, "lat": 0, "failure": 3}',
        '{"kind": "proc", "ts": 1, "procs": [{}]}',
        '{"kind": "proc", "ts": 1, "procs": 7}',
        '{"kind": "gpu", "ts": 1, "gpus": [{"colour": "red"}]}',
        "[" * 100_000,
    ],
)
def test_malformed_lines_are_skipped_and_counted(tmp_path: Path, line: str) -> None:
    path = write_lines(tmp_path / "r.jsonl", log_line(1), line, log_line(2))
    recording = read_recording(path)
    assert [one.timestamp for one in recording.observations] == [1.0, 2.0]
    assert recording.malformed_lines == 1


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\n", b'{"t": 1, "v": [1]}\n', b"\x1f\x8b", b"\x1f\x8bnope"])
def test_what_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordingError) as caught:
        read_recording(path)
    assert "vllm-monitor record" in caught.value.hint


def test_no_file_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(RecordingError, match="cannot be read"):
            read_recording(path)


def test_hostile_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(json.dumps(log_line(1)).encode() + b"\n")
        file.write(b"x" * (8 * 2**20) + b"\n")
        file.write(json.dumps(log_line(2)).encode() + b"\n")
        file.write(b"\n" * (8 * 2**20))
        file.write(json.dumps(log_line(3)).encode() + b"\n")
    recording = read_recording(path, max_line_bytes=2**20, max_bytes=12 * 2**20)
    assert [one.timestamp for one in recording.observations] == [1.0, 2.0]
    assert recording.malformed_lines == 1
    assert any("only the first" in note for note in recording.notes)


def test_real_recordings_are_read_whole(shared_recordings: Path) -> None:
    paths = sorted(shared_recordings.glob("*_s[0-9].jsonl.gz"))
    assert paths
    for path in paths[::4]:
        recording = read_recording(path)
        assert (recording.malformed_lines, recording.notes) == (0, ())
        wanted = [
            line
            for line in lines_of(path)
            if line["kind"] != "event"
            and (line["kind"] != "client" or (line.get("tag") == "canary" and line.get("e2e") is not None))
        ]
        assert len(recording.observations) == len(wanted)
        times = [one.visible_at for one in recording.observations]
        assert times == sorted(times)
        assert not any("event" in type(one).__name__.lower() for one in recording.observations)


def test_the_future_does_not_change_the_past(shared_recordings: Path, tmp_path: Path) -> None:
    for name in ("engine_sigstop_s0", "worker_sigkill_s0", "overload_s0"):
        whole_path = shared_recordings / f"{name}.jsonl.gz"
        whole = read_recording(whole_path)
        lines = lines_of(whole_path)
        begin, end = lines[0]["ts"], lines[-1]["ts"]
        for share in (0.1, 0.45, 0.8):
            until = begin + share * (end - begin)
            cut_path = tmp_path / f"{name}.jsonl"
            write_lines(cut_path, *(line for line in lines if line["ts"] <= until))
            cut = read_recording(cut_path)
            visible = [comparable(one) for one in whole.observations if one.visible_at <= until]
            assert [comparable(one) for one in cut.observations if one.visible_at <= until] == visible
            assert len(visible) > 20


def test_a_real_recording_survives_being_written_again(shared_recordings: Path, tmp_path: Path) -> None:
    original = read_recording(shared_recordings / "worker_sigkill_s0.jsonl.gz")
    path = tmp_path / "again.jsonl.gz"
    with RecordingWriter(path, target=original.target, started_at=0.0) as writer:
        writer.write(*original.observations)
    again = read_recording(path)
    assert list(map(comparable, again.observations)) == list(map(comparable, original.observations))
    assert path.stat().st_size < 4 * (shared_recordings / "worker_sigkill_s0.jsonl.gz").stat().st_size
