"""``record`` and ``replay``."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tests.cli.running import lines, run

from vllm_monitor.simulator import SimulatorProcess

DATA = Path(__file__).parent.parent / "data"


def test_replay_prints_one_object_per_file_and_stores_nothing(tmp_path: Path) -> None:
    names = ["engine_sigstop_s0", "worker_sigkill_s0"]
    reports = lines(run("replay", *(DATA / f"{name}.jsonl.gz" for name in names), "--json").stdout)
    assert [report["recording"] for report in reports] == names
    for report in reports:
        assert list(report) == ["recording", "ticks", "timeline", "alerts", "predictions"]
        assert set(report["timeline"][0]) == {"ts", "target", "state", "condition", "reason"}
    assert not (Path.home() / ".vllm_monitor").exists()


def test_replay_can_store_what_it_saw(tmp_path: Path) -> None:
    store = tmp_path / "store"
    told = run("replay", DATA / "worker_sigkill_s0.jsonl.gz", "--storage-dir", store).stdout
    assert "worker_dead firing (critical)" in told or "engine_dead firing (critical)" in told
    answer = json.loads(run("query", "generation_tokens_total", "--storage-dir", store, "--json").stdout)
    assert len(answer["series"][0]["points"]) > 30
    assert answer["series"][0]["target"] == "worker_sigkill_s0"


def test_what_is_cut_off_changes_nothing_before_the_cut(tmp_path: Path) -> None:
    whole = gzip.decompress((DATA / "engine_sigstop_s0.jsonl.gz").read_bytes()).splitlines(keepends=True)
    cut_at = json.loads(whole[0])["ts"] + 60.0
    short = tmp_path / "engine_sigstop_s0.jsonl"
    short.write_bytes(b"".join(line for line in whole if json.loads(line)["ts"] <= cut_at))
    (full,) = lines(run("replay", DATA / "engine_sigstop_s0.jsonl.gz", "--json").stdout)
    (partial,) = lines(run("replay", short, "--json").stdout)
    before = [entry for entry in full["timeline"] if entry["ts"] <= cut_at]
    assert [entry for entry in partial["timeline"] if entry["ts"] <= cut_at] == before


def test_what_was_recorded_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "session.jsonl.gz"
    with SimulatorProcess(seed=4, rate=5.0) as simulator:
        run("record", simulator.url, "-o", path, "--interval", "0.3", "--duration", "4", "--canary")
        assert "exists already" in run("record", simulator.url, "-o", path, "--duration", "1", check=1).stderr
    (report,) = lines(run("replay", path, "--json").stdout)
    assert report["recording"] == "session"
    assert report["ticks"] >= 10
    assert report["timeline"][-1]["condition"] in ("ok", "idle", "starved")
    assert report["timeline"][0]["target"] == simulator.url


@pytest.mark.parametrize("content", [None, b"", b"hello\n", b"\x1f\x8bnot really gzip", b'{"a": 1}\n'])
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert "hint:" in run("replay", path, check=1).stderr


def test_recording_takes_one_target_whatever_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLMMON_TARGETS", "http://127.0.0.1:1")
    path = tmp_path / "one.jsonl"
    run("record", "http://127.0.0.1:2", "-o", path, "--interval", "0.2", "--duration", "0.5")
    assert "127.0.0.1:1/" not in path.read_text()
    assert "hint:" in run("record", "ftp://x", "-o", tmp_path / "x", check=2).stderr


def test_the_variable_for_the_store_of_watches_does_not_make_a_replay_keep_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLMMON_STORAGE_DIR", str(tmp_path / "store"))
    run("replay", DATA / "worker_sigkill_s0.jsonl.gz")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "hostile",
    [
        {"kind": "health", "ts": 1e18, "status": 200, "lat": 0.1},
        {"kind": "health", "ts": 0, "status": 200, "lat": 0.1},
        {"kind": "health", "ts": 1795382980.0, "status": 200, "lat": 1e300},
        {"kind": "health", "ts": -1e15, "status": 200, "lat": 0.1},
        {"kind": "metrics", "ts": 1795382980.0, "status": 10**400, "lat": 0.1, "v": {"a": 1.0}},
        {"kind": "meta", "ts": 1.0, "interval": -1},
        {"kind": "meta", "ts": 1.0, "interval": float("nan")},
        {"kind": "meta", "ts": 1.0, "interval": 1e-9},
        {"kind": "log", "ts": 1795382980.0, "line": "\x1b]0;owned\x07EngineDeadError \x1b[31m"},
    ],
)
def test_a_hostile_line_neither_hangs_nor_crashes_a_replay(tmp_path: Path, hostile: dict[str, object]) -> None:
    whole = gzip.decompress((DATA / "worker_sigkill_s0.jsonl.gz").read_bytes()).splitlines(keepends=True)
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(json.dumps(hostile).encode() + b"\n" + b"".join(whole[:600]))
    assert lines(run("replay", path, "--json").stdout)[0]["ticks"] < 20_000
    assert "\x1b" not in run("replay", path).stdout
