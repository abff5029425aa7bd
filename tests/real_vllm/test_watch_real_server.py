from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import sqlite3
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from vllm_load import LoadGenerator
from vllm_monitor.records.vocabulary import is_known_family
from vllm_server import VllmServer
from watch_process import Tick, WatchProcess, monitor_command, query_metric

CALM = {"ok", "idle"}


def finished_requests(server: VllmServer) -> float:
    lines = re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", server.get("/metrics"), re.MULTILINE)
    return sum(float(value) for value in lines)


def has_figures(tick: Tick) -> bool:
    return {"requests_running", "kv_cache_usage_ratio", "generation_tokens_total"} <= tick.values.keys()


def milliseconds(timestamp: float) -> int:
    return round(timestamp * 1000)


def test_figures_come_within_ten_seconds_without_any_configuration(vllm_server: VllmServer, tmp_path: Path) -> None:
    with WatchProcess([vllm_server.url], tmp_path / "errors") as watch:
        watch.wait_for("figures", has_figures, 10)
        watch.wait_for("a verdict", lambda tick: tick.condition in CALM, 10)
        assert watch.interrupt() == 0
    assert watch.ticks[-1].data["version"] == "0.32.0"
    assert watch.ticks[-1].data["models"] == [vllm_server.model]


def test_first_useful_screen_comes_within_ten_seconds(vllm_server: VllmServer) -> None:
    wanted = [r"running +\d", r"KV cache +\d", r"tokens/s +\d", "engine", "worker", re.escape(vllm_server.url)]
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
    deadline, screen = time.monotonic() + 10, ""
    watch = subprocess.Popen(
        [monitor_command(), "watch", vllm_server.url],
        stdin=terminal,
        stdout=terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    try:
        while not all(re.search(pattern, screen) for pattern in wanted) and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.5)[0]:
                screen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(ours, 65536).decode(errors="replace"))
        assert [pattern for pattern in wanted if not re.search(pattern, screen)] == []
    finally:
        watch.kill()
        watch.wait()
        os.close(ours)


def test_processes_are_found_with_their_roles(vllm_server: VllmServer, tmp_path: Path) -> None:
    def has_all_roles(tick: Tick) -> bool:
        return {"api", "engine", "worker"} <= {process["role"] for process in tick.data["processes"]}

    with WatchProcess([vllm_server.url, "--no-store"], tmp_path / "errors") as watch:
        processes: list[Mapping[str, Any]] = watch.wait_for("all roles", has_all_roles, 15).data["processes"]
    for role in ("api", "engine", "worker"):
        (found,) = [process for process in processes if process["role"] == role]
        expected = vllm_server.process(role)
        assert found["pid"] == expected.pid
        assert found["threads"] >= 1
        assert found["fds"] > 3
        assert 100e6 < found["rss_bytes"] < 8e9
        assert abs(found["rss_bytes"] - expected.memory_info().rss) < 0.2 * expected.memory_info().rss


def test_every_family_of_the_page_is_known_or_noted_once(vllm_server: VllmServer, tmp_path: Path) -> None:
    names = set(re.findall(r"^(vllm:\w+)(?=[{ ])", vllm_server.get("/metrics"), re.MULTILINE))
    unknown = sorted(name for name in names if not name.endswith("_created") and not is_known_family(name))
    assert len(names) > 50
    with WatchProcess([vllm_server.url, "--no-store"], tmp_path / "errors") as watch:
        tick = watch.wait_for("figures", has_figures, 15)
    for name in unknown:
        assert sum(name in note for note in tick.data["notes"]) == 1
    assert not unknown, "the vocabulary should learn them"


def test_load_shows_in_rates_and_latencies(vllm_server: VllmServer, tmp_path: Path) -> None:
    expected = {
        "generation_tokens_per_second",
        "prompt_tokens_per_second",
        "time_to_first_token_p50_seconds",
        "time_to_first_token_p95_seconds",
        "inter_token_latency_p50_seconds",
        "e2e_request_latency_p50_seconds",
    }

    def is_busy(tick: Tick) -> bool:
        shown = {name for name in expected if tick.values.get(name, 0.0) > 0.0}
        return shown == expected and tick.condition == "ok"

    with (
        LoadGenerator(vllm_server.url, vllm_server.model) as load,
        WatchProcess([vllm_server.url, "--no-store"], tmp_path / "errors") as watch,
    ):
        tick = watch.wait_for("rates and latencies", is_busy, 60)
        counts = load.stop()
    assert counts.ok > 0
    assert counts.failed == 0
    assert tick.values["time_to_first_token_p50_seconds"] <= tick.values["time_to_first_token_p95_seconds"]
    assert tick.values["time_to_first_token_p50_seconds"] <= tick.values["e2e_request_latency_p50_seconds"]


def test_canary_gets_its_token_every_two_seconds(vllm_server: VllmServer, tmp_path: Path) -> None:
    with WatchProcess([vllm_server.url, "--no-store", "--canary"], tmp_path / "errors") as watch:
        first = watch.wait_for("a canary", lambda tick: tick.values.get("canary_ok") == 1.0, 20)
        before = finished_requests(vllm_server)
        watch.wait_for("ten more seconds", lambda tick: tick.data["ts"] >= first.data["ts"] + 10, 20)
        sent = finished_requests(vllm_server) - before
    canaries = [tick.values for tick in watch.ticks if "canary_ok" in tick.values]
    assert all(values["canary_ok"] == 1.0 and values["canary_latency_seconds"] > 0.0 for values in canaries)
    assert 4 <= sent <= 6


def test_kill_9_loses_nothing_printed_more_than_a_second_before(vllm_server: VllmServer, tmp_path: Path) -> None:
    store, errors = tmp_path / "store", tmp_path / "errors"
    arguments = [vllm_server.url, "--storage-dir", str(store)]
    with LoadGenerator(vllm_server.url, vllm_server.model):
        with WatchProcess(arguments, errors) as first:
            first.wait_for("half a minute", lambda tick: tick.seen_at >= first.started_at + 30, 60)
            killed_at = time.time()
            first.kill()
        with WatchProcess(arguments, errors) as second:
            second.wait_for("ten seconds", lambda tick: tick.seen_at >= second.started_at + 10, 30)
            assert second.interrupt() == 0

    answer = query_metric(store, "vllm:generation_tokens_total")
    stored = {milliseconds(at) for series in answer["series"] for at, _ in series["points"]}
    promised = {
        milliseconds(tick.data["scraped_at"])
        for tick in first.ticks
        if tick.seen_at < killed_at - 1.0 and tick.data["scraped_at"] is not None
    }
    assert len(promised) >= 20
    assert promised <= stored
    after = {milliseconds(tick.data["scraped_at"]) for tick in second.ticks if tick.data["scraped_at"] is not None}
    assert after <= stored
    values = [value for series in answer["series"] for _, value in series["points"]]
    assert values == sorted(values)
    assert values[-1] > values[0]

    (gap,) = [gap for gap in answer["gaps"] if gap["to"] >= second.started_at]
    assert gap["target"] == first.ticks[0].data["target"]
    assert gap["from"] <= killed_at
    assert gap["from"] >= max(promised) / 1000
    assert gap["seconds"] > 0
    assert gap["reason"]
    with closing(sqlite3.connect(f"file:{store / 'monitor.db'}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
