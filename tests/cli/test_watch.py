"""``watch`` and what can be asked afterwards."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.running import lines, run, start
from tests.core.test_monitor import free_port

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.simulator import SimulatorProcess


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(seed=3, rate=5.0) as process:
        yield process


def read_ticks(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def test_after_kill_minus_nine_every_old_tick_and_the_gap_are_there(
    simulator: SimulatorProcess, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = start("watch", simulator.url, "--storage-dir", store, "--interval", "0.5", "--json")
    text = "".join(read_ticks(first, 8))
    first.kill()
    assert first.stdout is not None
    text += first.stdout.read()
    first.communicate()
    printed = [tick for tick in lines(text) if tick["scraped_at"] is not None]
    killed_after = printed[-1]["ts"]
    second = start("watch", simulator.url, "--storage-dir", store, "--interval", "0.5", "--json")
    while lines(read_ticks(second, 1)[0])[0]["scraped_at"] is None:
        pass
    second.terminate()
    second.communicate(timeout=20)
    answer = json.loads(run("query", "--storage-dir", store, "vllm:generation_tokens_total", "--json").stdout)
    (series,) = answer["series"]
    stored = [at for at, _ in series["points"]]
    for tick in printed:
        if tick["ts"] < killed_after - 1.0:
            assert tick["scraped_at"] in stored
    assert any(gap["reason"] == "nobody watched" for gap in answer["gaps"])
    with sqlite3.connect(store / "monitor.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_tick_has_the_documented_keys_and_no_nan(simulator: SimulatorProcess) -> None:
    done = run("watch", simulator.url, "--no-store", "--interval", "0.3", "--duration", "1.5", "--json")
    for line in done.stdout.splitlines():
        tick = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert {"ts", "target", "state", "condition", "reason", "values", "scraped_at", "health_status"} <= set(tick)
    assert lines(done.stdout)[-1]["values"]["generation_tokens_per_second"] > 0
    assert lines(done.stdout)[-1]["processes"][0]["pid"] == simulator.pid


def test_a_signal_that_comes_twice_at_once_does_not_cut_the_end_short(
    simulator: SimulatorProcess, tmp_path: Path
) -> None:
    """As timeout(1) sends it: to the process and to its group."""
    process = start("watch", simulator.url, "--json", "--storage-dir", tmp_path / "store")
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        assert store.get_events(limit=1)[0].event_type == "monitor_stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_when_asked(simulator: SimulatorProcess, tmp_path: Path, number: signal.Signals) -> None:
    process = start("watch", simulator.url, "--storage-dir", tmp_path / "s", "--interval", "0.3")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Watched 1 target" in out
    assert "Traceback" not in err


def test_a_reader_that_goes_away_ends_it_quietly(simulator: SimulatorProcess) -> None:
    process = start("watch", simulator.url, "--no-store", "--interval", "0.2", "--json")
    read_ticks(process, 2)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(15) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_status_stats_csv_and_canonical_names(simulator: SimulatorProcess, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run("watch", simulator.url, "--storage-dir", store, "--interval", "0.3", "--duration", "2", "--json")
    (target,) = json.loads(run("status", "--storage-dir", store, "--json").stdout)["targets"]
    assert target["target"] == simulator.url
    assert target["condition"] in ("ok", "idle", "starved")
    assert simulator.url[-5:] in run("status", "--storage-dir", store).stdout
    statistics = json.loads(run("stats", "--storage-dir", store, "--json").stdout)
    assert statistics["counts"]["metrics"] > 400
    assert "counts" in run("stats", "--storage-dir", store).stdout
    happened = lines(run("events", "--storage-dir", store, "--json").stdout)
    assert [event["type"] for event in happened][:2] == ["monitor_started", "watch_started"]
    assert happened[-1]["type"] == "monitor_stopped"
    assert "became" in run("events", "--storage-dir", store, "--last", "1h", "--target", simulator.url).stdout
    rows = run("query", "kv_cache_usage_ratio", "--storage-dir", store, "--csv").stdout.splitlines()
    assert rows[0] == "timestamp,target,name,labels,value"
    assert "vllm:kv_cache_usage_perc" in rows[1]
    assert "vllm:num_requests_running" in run("query", "vllm:num_requests_running", "--storage-dir", store).stdout
    wrong = run("query", "vllm:num_request_running", "--storage-dir", store, check=2)
    assert "did you mean vllm:num_requests_running" in wrong.stderr


def test_a_server_that_is_not_there_is_said_and_waited_for() -> None:
    done = run("watch", f"127.0.0.1:{free_port()}", "--no-store", "--interval", "0.3", "--duration", "2", "--json")
    last = lines(done.stdout)[-1]
    assert last["condition"] == "unreachable"
    assert last["failure"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["watch"], "no server to watch"),
        (["watch", "ftp://x"], "ftp"),
        (["watch", "http://127.0.0.1:1", "--interval", "0"], "interval_seconds"),
        (["watch", "http://127.0.0.1:1", "--duration", "-1"], "duration"),
        (["watch", "http://a:1", "http://b:1", "--log-file", "x"], "--log-file"),
        (["watch", "http://127.0.0.1:1", "--config", "/no/such/file"], "no file"),
        (["query", "x", "--storage-dir", "/no/such/dir"], "no store"),
        (["status", "--storage-dir", "/no/such/dir"], "no store"),
        (["query", "x", "--json", "--csv"], "exclude"),
        (["replay", "x", "--interval", "0"], "--interval"),
        (["demo", "--duration", "5"], "too short"),
        (["watch", "https://127.0.0.1:1", "--ca-file", "/no/such/file"], "/no/such/file"),
        (["simulate", "--port", "70000"], "70000"),
        (["simulate", "--port", "0", "--rate", "1e9"], "requests per second"),
    ],
)
def test_nonsense_gets_an_error_with_a_hint_and_exit_code_two(arguments: list[str], words: str) -> None:
    done = run(*arguments, check=2)
    assert words in done.stderr
    assert "hint:" in done.stderr


def test_canonical_names_take_only_their_labels_and_histograms_all_their_parts(
    simulator: SimulatorProcess, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run("watch", simulator.url, "--storage-dir", store, "--interval", "0.3", "--duration", "1", "--json")
    awake = json.loads(run("query", "engine_awake", "--storage-dir", store, "--json").stdout)
    assert {series["tags"]["sleep_state"] for series in awake["series"]} == {"awake"}
    latency = json.loads(run("query", "time_to_first_token_seconds", "--storage-dir", store, "--json").stdout)
    assert {series["name"].rpartition("_")[2] for series in latency["series"]} == {"bucket", "sum", "count"}
    computed = run("query", "generation_tokens_per_second", "--storage-dir", store, check=2)
    assert "computed" in computed.stderr
