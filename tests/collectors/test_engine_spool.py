"""Reading what the part inside a server left: nothing twice, nothing of others, nothing that harms."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.steps import finished, iteration, scheduler

from vllm_monitor.collectors import EngineSpool, ReadMark
from vllm_monitor.collectors.engine_header import started_note
from vllm_monitor.collectors.engine_lines import note_of, rejected_of, requests_of, samples_of
from vllm_monitor.collectors.proc_files import read_stat
from vllm_monitor.records import EngineObservation, MetricKind
from vllm_monitor_engine.recorder import Recorder
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool

URL = "http://127.0.0.1:8000"
OURS = (os.getpid(),)
NOW = 2_000.0


class Inside:
    """The part inside a server, with a clock of its own."""

    def __init__(self, folder: Path, name: str = f"{os.getpid()}-77-1", limit: int = 1_000_000, **header: Any) -> None:
        self.now = 1_000.0
        self.spool = Spool(folder, name, limit, {"pid": os.getpid(), "model": "tiny", "port": 8000, **header})
        self.recorder = Recorder(
            EngineSettings(enabled=True), self.spool, wall=lambda: self.now, monotonic=lambda: self.now
        )

    def serve(self, *names: str) -> None:
        self.now += 1.0
        self.recorder.record(0, scheduler(), iteration(*(finished(name) for name in names), ttft=(0.2,), at=self.now))
        self.recorder.turn()


def spool_of(url: str, folders: list[Path], read: dict[str, ReadMark] | None = None) -> EngineSpool:
    return EngineSpool(url, folders, read, port=int(url.rpartition(":")[2]))


def read(spool: EngineSpool, pids: tuple[int, ...] = OURS) -> list[EngineObservation]:
    return spool.collect(pids, NOW)


def marks(observations: list[EngineObservation]) -> dict[str, ReadMark]:
    return {one.spool: ReadMark(one.line, one.api_server) for one in observations}


def ids(observations: list[EngineObservation]) -> list[str]:
    return [one.metadata["server_request_id"] for observation in observations for one in observation.requests]


def test_what_was_served_is_read_once(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path), spool_of(URL, [tmp_path])
    inside.serve("a", "b")
    (one,) = read(spool)
    assert ids([one]) == ["a", "b"]
    assert one.timestamp == 1_001.0
    request = one.requests[0]
    assert (request.model, request.target, request.finish_reason) == ("tiny", URL, "stop")
    assert (request.timestamp, request.prompt_tokens, request.output_tokens) == (999.0, 12, 31)
    assert (request.time_to_first_token_seconds, request.queue_seconds) == (0.5, 0.1)
    assert not read(spool)
    inside.serve("c")
    assert ids(read(spool)) == ["c"]


def test_its_samples_are_named_as_the_servers_own(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path), spool_of(URL, [tmp_path])
    inside.serve("a")
    (one,) = read(spool)
    assert one.layout is not None
    assert one.values is not None
    rows = dict(zip(map(str, one.layout.series), one.values, strict=True))
    labels = 'api_server="0",engine="0"'
    assert rows[f"vllm_monitor_engine_generation_tokens_total{{{labels}}}"] == 2
    assert rows[f"vllm_monitor_engine_num_requests_running{{{labels}}}"] == 1
    assert rows[f'vllm_monitor_engine_request_success_total{{{labels},finished_reason="stop"}}'] == 1
    bucket = f"vllm_monitor_engine_time_to_first_token_seconds_bucket{{{labels},le="
    assert rows[f'{bucket}"0.1"}}'] == 0
    assert rows[f'{bucket}"0.25"}}'] == 1
    assert rows[f'{bucket}"+Inf"}}'] == 1
    kinds = {series.name: series.kind for series in one.layout.series}
    assert kinds["vllm_monitor_engine_lost_steps_total"] is MetricKind.COUNTER
    assert kinds["vllm_monitor_engine_time_to_first_token_seconds_sum"] is MetricKind.HISTOGRAM


def test_what_was_refused_is_a_counter_for_each_reason(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path), spool_of(URL, [tmp_path])
    for _ in range(3):
        inside.recorder.rejections.count("max_num_queued_reqs")
    inside.recorder.standing["paused"] = 1
    inside.serve("a")
    (one,) = read(spool)
    assert one.layout is not None
    assert one.values is not None
    assert (one.rejected, one.is_paused) == ({"max_num_queued_reqs": 3}, True)
    rows = dict(zip(one.layout.series, one.values, strict=True))
    name = "vllm_monitor_engine_rejected_requests_total"
    (series,) = (series for series in rows if series.name == name)
    assert (series.labels, series.kind) == (
        (("api_server", "0"), ("reason", "max_num_queued_reqs")),
        MetricKind.COUNTER,
    )
    assert rows[series] == 3


def test_the_header_is_the_first_thing_that_a_process_tells(tmp_path: Path) -> None:
    config = {"max_num_seqs": 8, "dtype": "bfloat16", "enforce_eager": True}
    header: dict[str, Any] = {
        "t": 1_000.0,
        "config": config,
        "config_fingerprint": "ab" * 32,
        "kv_capacity_tokens": 8192,
        "process_started_at": 970.0,
        "engine_client_at": 1_000.0,
    }
    Inside(tmp_path, **header).serve("a")
    (one,) = read(spool_of(URL, [tmp_path]))
    (note,) = one.notes
    assert (note.kind, note.timestamp) == ("started", 1_000.0)
    assert note.facts == {name: value for name, value in header.items() if name != "t"}
    assert not read(spool_of(URL, [tmp_path], marks([one]))), "an earlier watch has stored it"


def test_a_reader_that_comes_late_misses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    inside = Inside(tmp_path)
    for number in range(100):
        inside.serve(f"{number}")
    first = spool_of(URL, [tmp_path])
    seen = read(first)
    assert ids(seen) == [f"{number}" for number in range(100)]
    for number in range(100, 150):
        inside.serve(f"{number}")
    later = read(spool_of(URL, [tmp_path], marks(seen)))
    assert [one.timestamp for one in later if one.layout is not None] == [1_000.0 + n for n in range(101, 151)]
    assert ids(later) == [f"{number}" for number in range(100, 150)]


def test_segments_that_went_before_they_were_read_are_counted(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path, limit=65_536), spool_of(URL, [tmp_path])
    for number in range(1_000):
        inside.serve(f"{number}")
    seen = read(spool)
    while more := read(spool):
        seen += more
    assert ids(seen)[-1] == "999"
    assert seen[-1].lost == 2_000 - len(seen) - len(ids(seen))


def test_a_line_without_its_end_waits_for_it(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path), spool_of(URL, [tmp_path])
    inside.serve("a")
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert not read(spool)
    file.write_bytes(whole)
    assert ids(read(spool)) == ["a"]


# -- whose it is -----------------------------------------------------------------------------------------------------


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_another_servers_lines_are_left_alone(tmp_path: Path) -> None:
    Inside(tmp_path).serve("a")
    assert not read(spool_of(URL, [tmp_path]), pids=(1,)), "its process lives, and serves another port"


def test_a_dead_servers_lines_are_known_by_its_port(tmp_path: Path) -> None:
    pid = dead_pid()
    Inside(tmp_path, f"{pid}-5-1", pid=pid).serve("a")
    assert ids(read(spool_of(URL, [tmp_path]), pids=())) == ["a"]
    assert not read(spool_of("http://127.0.0.1:8001", [tmp_path]), pids=())
    assert not spool_of("http://gpu1:8000", [tmp_path]).collect((), NOW, is_local=False)


def test_the_operators_word_comes_first(tmp_path: Path) -> None:
    Inside(tmp_path, target_url="http://gpu1:8000/").serve("a")
    assert ids(spool_of("http://gpu1:8000", [tmp_path]).collect((), NOW, is_local=False)) == ["a"]
    assert not read(spool_of(URL, [tmp_path]))


def test_a_process_that_is_surely_the_servers_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    Inside(tmp_path, target_url="http://gpu1:8000/", process_started=stat.start_ticks).serve("a")
    assert ids(read(spool_of(URL, [tmp_path]))) == ["a"]


def test_two_api_servers_of_one_server_are_kept_apart(tmp_path: Path) -> None:
    first, second = Inside(tmp_path), Inside(tmp_path, f"{os.getpid()}-78-1")
    first.serve("a")
    second.serve("b")
    seen = read(spool_of(URL, [tmp_path]))
    assert {one.api_server for one in seen} == {"0", "1"}
    assert sorted(ids(seen)) == ["a", "b"]


def test_each_api_server_keeps_its_number_whoever_is_found_first(tmp_path: Path) -> None:
    second = Inside(tmp_path, f"{os.getpid()}-77-1", api_server=1, api_servers=2)
    second.serve("b")
    spool = spool_of(URL, [tmp_path])
    seen = read(spool)
    first = Inside(tmp_path, f"{os.getpid()}-78-1", api_server=0, api_servers=2)
    first.serve("a")
    seen += read(spool)
    assert [(one.api_server, ids([one])) for one in seen] == [("1", ["b"]), ("0", ["a"])]
    again = spool_of(URL, [tmp_path], marks(seen))
    assert not read(again)
    second.serve("d")
    assert [(one.api_server, ids([one])) for one in read(again)] == [("1", ["d"])]


def test_a_server_that_was_restarted_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    before = dead_pid()
    Inside(tmp_path, f"{before}-5-1", pid=before).serve("a")
    spool = spool_of(URL, [tmp_path])
    assert [one.api_server for one in read(spool)] == ["0"]
    Inside(tmp_path).serve("b")
    assert [one.api_server for one in read(spool)] == ["0"]


# -- reading on ------------------------------------------------------------------------------------------------------


def test_how_far_it_was_read_does_not_depend_on_the_clock(tmp_path: Path) -> None:
    inside = Inside(tmp_path)
    inside.serve("a")
    seen = read(spool_of(URL, [tmp_path]))
    inside.now -= 900.0
    inside.serve("b")
    assert ids(read(spool_of(URL, [tmp_path], marks(seen)))) == ["b"]


def test_what_an_earlier_watch_has_read_and_is_gone_by_now_is_not_missing(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path, limit=65_536), spool_of(URL, [tmp_path])
    seen: list[EngineObservation] = []
    for number in range(1_000):
        inside.serve(f"{number}")
        seen += read(spool) if number % 10 == 0 else []
    again = spool_of(URL, [tmp_path], marks(seen))
    later = read(again)
    assert ids(later) == [f"{number}" for number in range(991, 1_000)]
    assert later[-1].lost == 0


def test_a_live_process_keeps_its_label_when_the_one_before_it_is_dead(tmp_path: Path) -> None:
    pid = dead_pid()
    Inside(tmp_path, f"{pid}-5-1", pid=pid).serve("a")
    second = Inside(tmp_path, f"{os.getpid()}-78-1")
    second.serve("b")
    seen = marks(read(spool_of(URL, [tmp_path])))
    seen = {spool: ReadMark(mark.line, "1" if "-78-" in spool else "0") for spool, mark in seen.items()}
    again = spool_of(URL, [tmp_path], seen)
    third = Inside(tmp_path, f"{os.getpid()}-6-1")
    third.serve("d")
    assert [(one.api_server, ids([one])) for one in read(again)] == [("0", ["d"])]
    second.serve("c")
    assert [(one.api_server, ids([one])) for one in read(again)] == [("1", ["c"])]


def test_a_folder_that_cannot_be_listed_for_once_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, spool = Inside(tmp_path), spool_of(URL, [tmp_path])
    inside.serve("a")
    assert ids(read(spool)) == ["a"]

    def fail(_: Path) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", fail)
        assert not read(spool)
    inside.serve("b")
    assert ids(read(spool)) == ["b"]


def test_a_spool_that_is_away_for_once_is_not_told_anew(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path / "spool", t=900.0), spool_of(URL, [tmp_path / "spool"])
    inside.serve("a")
    assert ids(read(spool)) == ["a"]
    (tmp_path / "spool").rename(tmp_path / "away")
    assert not read(spool)
    (tmp_path / "away").rename(tmp_path / "spool")
    inside.serve("b")
    (one,) = read(spool)
    assert (ids([one]), one.notes) == (["b"], ())


def test_a_file_that_cannot_be_opened_for_once_is_read_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, spool = Inside(tmp_path, limit=65_536), spool_of(URL, [tmp_path])
    inside.serve("a")
    assert ids(read(spool)) == ["a"]
    for number in range(20):
        inside.serve(f"{number}")
    really = os.open

    def fail(path: Any, *arguments: Any, **further: Any) -> int:
        if str(path).endswith("000001.spool"):
            raise OSError(errno.EMFILE, "too many open files")
        return really(path, *arguments, **further)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        assert not read(spool)
    later = read(spool)
    assert (ids(later), later[-1].lost) == ([f"{number}" for number in range(20)], 0)


def test_a_server_that_dies_before_its_port_opens_is_read_by_the_watch_that_runs(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        Inside(tmp_path, f"{process.pid}-5-1", pid=process.pid).serve("a")
        spool = spool_of(URL, [tmp_path])
        assert not read(spool, pids=()), "it may be anybody's yet"
        process.kill()
    assert ids(read(spool, pids=())) == ["a"]


def test_a_file_whose_header_is_not_whole_yet_is_looked_at_again(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path), spool_of(URL, [tmp_path])
    inside.serve("a")
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for length in (0, 20):
        file.write_bytes(whole[:length])
        assert not read(spool)
    file.write_bytes(whole)
    assert ids(read(spool)) == ["a"]


def test_a_segment_of_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, spool = Inside(tmp_path, limit=32_768), spool_of(URL, [tmp_path])
    for number in range(8):
        inside.serve(f"{number}")
    first, second = sorted(tmp_path.iterdir())[:2]
    theirs = second.stat().st_ino
    really = os.fstat

    def seen(descriptor: int) -> os.stat_result:
        found = really(descriptor)
        if found.st_ino != theirs:
            return found
        return os.stat_result((*found[:4], os.getuid() + 1, *found[5:10]))

    monkeypatch.setattr(os, "fstat", seen)
    told = ids(read(spool))
    lines = first.read_text().count('"kind":"requests"')
    assert told[:lines] == [f"{number}" for number in range(lines)]
    assert f"{lines}" not in told


def test_a_segment_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path / "spool"), spool_of(URL, [tmp_path / "spool"])
    inside.serve("a")
    assert ids(read(spool)) == ["a"]
    inside.serve("b")
    (file,) = (tmp_path / "spool").iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert not read(spool)


def test_a_line_that_is_too_long_is_missing_and_those_behind_it_are_read(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path, limit=256 << 20), spool_of(URL, [tmp_path])
    inside.serve("a")
    inside.spool.write([{"kind": "requests", "id": ["x" * (6 << 20)]}])
    inside.serve("b")
    seen = [one for _ in range(9) for one in read(spool)]
    assert ids(seen) == ["a", "b"]
    assert [one.lost for one in seen] == [0, 1]


def test_a_line_of_very_many_requests_is_read(tmp_path: Path) -> None:
    inside, spool = Inside(tmp_path, limit=256 << 20), spool_of(URL, [tmp_path])
    names = [f"{number:0200}" for number in range(9_000)]
    columns = {"id": names, "ended": [1_000.0] * 9_000, "reason": ["x" * 150] * 9_000}
    inside.spool.write([{"kind": "requests", **columns}])
    inside.serve("b")
    seen = [one for _ in range(9) for one in read(spool)]
    assert ids(seen) == [*names, "b"]
    assert seen[-1].lost == 0


def test_another_writer_of_the_same_name_counts_from_the_beginning(tmp_path: Path) -> None:
    before = Inside(tmp_path, t=900.0)
    for name in "abc":
        before.serve(name)
    (file,) = tmp_path.iterdir()
    kept = file.read_bytes()
    file.unlink()
    after = Inside(tmp_path, t=950.0)
    after.now = 1_500.0
    after.serve("d")
    file.rename(file.with_name(file.name.replace("000001", "000002")))
    file.write_bytes(kept)
    seen = read(spool_of(URL, [tmp_path]))
    assert ids(seen) == ["a", "b", "c", "d"]
    assert len({request.request_id for one in seen for request in one.requests}) == 4
    assert [[note.kind for note in one.notes] for one in seen] == [["started"], [], [], ["started"]]
    assert len({note.note_id for one in seen for note in one.notes}) == 2
    assert seen[-1].lost == 0
    assert not read(spool_of(URL, [tmp_path], marks(seen)))


# -- hostile files ---------------------------------------------------------------------------------------------------

HOSTILE = [
    b"",
    b"\n\n\n",
    b"[" * 100_000 + b"\n",
    b'{"n":1e999,"kind":"totals","t":1}\n',
    b'{"n":1,"kind":"totals","t":NaN,"engines":{"0":{}}}\n',
    b'{"n":1,"kind":"totals","t":5,"engines":{"0":{"counters":{"a b":1,"x":Infinity,"y":true}},"1":[],"2":3}}\n',
    b'{"n":1,"kind":"totals","t":5,"engines":{"0":{"histograms":{"h":{"bounds":"1 x","counts":[1,2,3],"sum":1}}}}}\n',
    b'{"n":1,"kind":"totals","t":5,"engines":[],"in_flight":"many","stalled_seconds":-5,"lost_steps":1e300}\n',
    b'{"n":1,"kind":"requests","id":["a"],"ended":[-1]}\n{"n":2,"kind":"requests"}\n{"n":3,"kind":"totals","t":5}\n',
    b'{"n":1,"kind":"requests","id":[{},"b"],"ended":[5],"reason":["\\ud800"],"queue_seconds":[1e308]}\n{"n":2,"t":6}\n',
    b'{"n":1,"kind":"unwritable"}\n{"n":2,"kind":"totals","t":6}\n',
    b'{"n":' + b"9" * 5_000 + b',"kind":"totals","t":5}\n',
    b'{"n":7,"kind":"totals","t":99999999999999}\n',
    b"\x00\xff" * 50_000,
    b'{"kind":"header"}\n"text"\n7\nnull\n',
]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_damaged_or_hostile_file_harms_nothing(tmp_path: Path, content: bytes) -> None:
    header = json.dumps({"kind": "header", "format": 1, "pid": os.getpid()}).encode() + b"\n"
    (tmp_path / f"{os.getpid()}-77-1.000001.spool").write_bytes(header + content)
    for one in read(spool_of(URL, [tmp_path])):
        assert one.timestamp <= NOW
        assert one.lost >= 0
        for request in one.requests:
            request.finish_reason.encode()


@pytest.mark.parametrize("content", [b"", b"no json\n", b"{}\n", b'{"format":2,"pid":1}\n', b"[]\n", b"x" * 200_000])
def test_a_file_without_our_header_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{os.getpid()}-77-1.000001.spool").write_bytes(content)
    assert not read(spool_of(URL, [tmp_path]))


def test_links_pipes_and_folders_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    Inside(tmp_path / "elsewhere").serve("a")
    (real,) = (tmp_path / "elsewhere").iterdir()
    (folder / f"{os.getpid()}-77-1.000001.spool").symlink_to(real)
    os.mkfifo(folder / f"{os.getpid()}-78-1.000001.spool")
    (folder / f"{os.getpid()}-79-1.000001.spool").mkdir()
    assert not read(spool_of(URL, [folder]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
LINE_KEYS = ("t", "n", "engines", "ended", "reason", "in_flight", "counters", "histograms", "prompt_tokens", "id")


@given(line=st.dictionaries(st.sampled_from(LINE_KEYS) | st.text(max_size=8), json_values, max_size=10))
def test_no_line_makes_it_raise(line: dict[str, Any]) -> None:
    layout, values = samples_of(line, "0")
    assert len(layout) == len(values)
    requests_of(line, URL, "m", "id")
    note_of(line)
    assert all(count >= 0 for count in rejected_of({**line, "rejected": line}).values())


HEADER_KEYS = ("t", "config", "config_fingerprint", "num_gpu_blocks", "kv_capacity_tokens", "engine_client_at", "model")


@given(header=st.dictionaries(st.sampled_from(HEADER_KEYS) | st.text(max_size=8), json_values, max_size=10))
def test_no_header_makes_it_raise(header: dict[str, Any]) -> None:
    for at in ({}, {"t": 5.0}):
        note = started_note({**header, **at, "config": header})
        if note is not None:
            json.dumps(note.facts, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("header", "facts"),
    [
        ({"kv_capacity_tokens": "8192", "num_gpu_blocks": True, "block_size": -1}, {}),
        ({"kv_capacity_tokens": 10**400, "engine_client_at": float("nan")}, {}),
        ({"config_fingerprint": "NaN", "config": [1]}, {}),
        (
            {"config_fingerprint": ["ab" * 32], "config": {"A B": 1, "x": [], "y": float("inf"), "z": 1}},
            {"config": {"z": 1}},
        ),
        (
            {"config": {f"n{number}": "x" * 9_000 for number in range(999)}},
            {"config": {f"n{number}": "x" * 200 for number in range(100)}},
        ),
        ({"engine_client_at": 7.0, "killed_at": 8.0, "_at": 1.0}, {"engine_client_at": 7.0, "killed_at": 8.0}),
    ],
)
def test_of_an_odd_header_what_fits_is_taken(header: dict[str, Any], facts: dict[str, Any]) -> None:
    note = started_note({"t": 5.0, **header})
    assert note is not None
    assert note.facts == facts
    assert started_note(header) is None, "nobody knows when that was"
