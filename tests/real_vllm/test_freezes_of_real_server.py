"""One server and one watch under load; the tests run in the order of the file, and the last one ends the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_load import LoadGenerator
from vllm_server import VllmServer
from watch_process import Tick, WatchProcess

# "starved" is a fair verdict on a small test machine that carries server, clients and monitor at once.
WELL = {"ok", "idle", "starved"}
DEAD = {"engine_dead", "api_dead"}


@pytest.fixture(scope="module")
def watch(vllm_server: VllmServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchProcess]:
    folder = tmp_path_factory.mktemp("watch")
    with (
        LoadGenerator(vllm_server.url, vllm_server.model),
        WatchProcess([vllm_server.url, "--storage-dir", str(folder / "store")], folder / "errors") as watch,
    ):
        yield watch


@pytest.fixture(autouse=True)
def _begins_well(watch: WatchProcess) -> None:
    watch.wait_for("a server that works", is_well, 60, after=time.time())


def is_well(tick: Tick) -> bool:
    return tick.condition in WELL


def seen_since(watch: WatchProcess, moment: float) -> set[str]:
    return {tick.condition for tick in watch.ticks if tick.seen_at > moment}


def test_load_alone_raises_no_suspicion(watch: WatchProcess) -> None:
    watch.wait_for("half a minute", lambda tick: tick.seen_at >= watch.started_at + 30, 60)
    assert seen_since(watch, 0.0) <= WELL | {"unknown"}


@pytest.mark.parametrize("role", ["engine", "worker"])
def test_frozen_process_is_a_stall_although_health_says_200(
    role: str, vllm_server: VllmServer, watch: WatchProcess
) -> None:
    process = vllm_server.process(role)
    frozen_at = time.time()
    process.suspend()
    try:
        tick = watch.wait_for("a stall", lambda tick: tick.condition == "stalled", 15, after=frozen_at)
        assert vllm_server.health_status() == 200
        assert tick.data["health_status"] == 200
        assert tick.data["state"] == "degraded"
        assert tick.data["reason"]
        time.sleep(5)
        assert watch.ticks[-1].condition == "stalled"
    finally:
        continued_at = time.time()
        process.resume()
    watch.wait_for("recovery", is_well, 5, after=continued_at)


def test_pause_is_no_stall(vllm_server: VllmServer, watch: WatchProcess) -> None:
    paused_at = time.time()
    vllm_server.post("/pause?mode=keep")
    try:
        watch.wait_for("a pause", lambda tick: tick.condition == "paused", 15, after=paused_at)
        watch.wait_for("a long pause", lambda tick: tick.seen_at >= paused_at + 20, 30)
        assert watch.ticks[-1].condition == "paused"
    finally:
        vllm_server.post("/resume")
    resumed_at = time.time()
    watch.wait_for("resumption", is_well, 5, after=resumed_at)
    assert seen_since(watch, paused_at) <= WELL | {"paused"}


def test_frozen_api_server_is_told_apart(vllm_server: VllmServer, watch: WatchProcess) -> None:
    process = vllm_server.process("api")
    frozen_at = time.time()
    process.suspend()
    try:
        watch.wait_for("a frozen API server", lambda tick: tick.condition == "api_frozen", 15, after=frozen_at)
        assert vllm_server.health_status(1.0) is None
    finally:
        continued_at = time.time()
        process.resume()
    watch.wait_for("recovery", is_well, 5, after=continued_at)
    assert not seen_since(watch, frozen_at) & {"stalled", "engine_dead", "worker_dead", "api_dead", "unreachable"}


def test_killed_engine_is_dead_and_stays_so(vllm_server: VllmServer, watch: WatchProcess, tmp_path: Path) -> None:
    # A server on a quiet host follows its engine within a second: only its log can then tell which of them went first.
    arguments = [vllm_server.url, "--no-store", "--log-file", str(vllm_server.log_file)]
    with WatchProcess(arguments, tmp_path / "errors") as informed:
        informed.wait_for("a server that works", is_well, 15)
        killed_at = time.time()
        vllm_server.process("engine").kill()
        dead = informed.wait_for("a dead engine", lambda tick: tick.condition == "engine_dead", 10, after=killed_at)
        informed.wait_for("ten seconds more", lambda tick: tick.seen_at >= dead.seen_at + 10, 30)
        assert not seen_since(informed, dead.seen_at) & (WELL | {"unknown"})
    gone = watch.wait_for("a dead server", lambda tick: tick.condition in DEAD, 10, after=killed_at)
    assert not seen_since(watch, gone.seen_at) & (WELL | {"unknown"})
    living = [process for process in watch.ticks[-1].data["processes"] if process["state"] != "zombie"]
    assert {process["role"] for process in living} <= {"worker", "resource_tracker"}
