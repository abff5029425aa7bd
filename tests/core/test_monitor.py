"""The monitor as a library: what a program that embeds it relies on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.waiting import wait_until

from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.core import Tick
from vllm_monitor.errors import ConfigurationError, InvalidConditionError
from vllm_monitor.persistence import PersistenceConfig
from vllm_monitor.simulator import SimulatorProcess

FAST = MonitorConfig(interval_seconds=0.2)


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(seed=1, rate=5.0, dev_mode=True) as process:
        yield process


def store_in(path: Path) -> PersistenceConfig:
    return PersistenceConfig(storage_dir=path / "store")


def ticks_of(monitor: VLLMMonitor) -> list[Tick]:
    ticks: list[Tick] = []
    monitor.add_listener(ticks.append)
    return ticks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_documented_construction_works_and_collects_nothing(tmp_path: Path) -> None:
    monitor = VLLMMonitor(
        enable_persistence=True,
        persistence_config=PersistenceConfig(
            storage_dir=tmp_path / "monitor_data",
            metrics_retention_days=30,
            checkpoint_retention_days=90,
            batch_size=1000,
            compression_enabled=True,
        ),
    )
    assert monitor.persistence_manager is not None
    assert monitor.latest() == {}
    monitor.close()
    monitor.close()
    with pytest.raises(ConfigurationError, match="closed"):
        monitor.start()


def test_what_is_seen_is_stored_and_still_there_after_a_restart(simulator: SimulatorProcess, tmp_path: Path) -> None:
    with VLLMMonitor(FAST, persistence_config=store_in(tmp_path)) as monitor:
        url = monitor.add_target(simulator.url, labels={"team": "a"})
        ticks = ticks_of(monitor)
        wait_until(lambda: len(ticks) >= 8, "eight ticks")
    assert {tick.snapshot.condition.value for tick in ticks[3:]} <= {"ok", "idle", "starved"}
    scraped = {round(tick.snapshot.scraped_at, 3) for tick in ticks if tick.snapshot.scraped_at is not None}
    reader = VLLMMonitor(FAST, persistence_config=store_in(tmp_path))
    assert reader.persistence_manager is not None
    (series,) = reader.persistence_manager.query_range("vllm:generation_tokens_total", target=url)
    assert scraped <= {round(at / 1000, 3) for at in series.timestamps_ms.tolist()}
    assert reader.get_historical_metrics("performance", hours_back=1.0)
    assert reader.get_historical_metrics("resource", hours_back=1.0)
    assert reader.get_persistence_stats()["counts"]["checkpoints"] >= 1
    last = reader.persistence_manager.get_checkpoints(limit=1, target=url)[0]
    report = reader.lifecycle_tracker.get_state_report(url)
    assert (report["state"], report["since"]) == (last.state.value, last.timestamp), (
        "the story goes on where it stopped"
    )
    reader.close()


def test_async_with_works_as_well(simulator: SimulatorProcess) -> None:
    async def watch() -> int:
        async with VLLMMonitor(FAST, enable_persistence=False) as monitor:
            ticks = ticks_of(monitor)
            monitor.add_target(simulator.url)
            while len(ticks) < 3:  # noqa: ASYNC110  # ticks come from another thread, which has no event to await
                await asyncio.sleep(0.02)
            return len(ticks)

    assert asyncio.run(watch()) >= 3


def test_targets_come_and_go_while_it_runs(simulator: SimulatorProcess) -> None:
    with VLLMMonitor(FAST, enable_persistence=False) as monitor:
        url = monitor.add_target(simulator.url)
        dead = monitor.add_target(f"127.0.0.1:{free_port()}")
        with pytest.raises(ConfigurationError, match="already"):
            monitor.add_target(simulator.url + "/")
        wait_until(lambda: len(monitor.latest()) == 2, "a tick of both")
        wait_until(
            lambda: monitor.get_system_health()["targets"][dead]["condition"] == "unreachable", "it is unreachable"
        )
        wait_until(lambda: monitor.latest()[url].snapshot.condition.value in ("ok", "idle"), "the other is watched on")
        monitor.remove_target(dead)
        wait_until(lambda: set(monitor.latest()) == {url}, "it is gone")
        with pytest.raises(ConfigurationError, match="not watched"):
            monitor.remove_target(dead)


def test_a_log_is_let_go_with_its_target(simulator: SimulatorProcess, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.touch()

    def open_here() -> bool:
        return any(os.path.realpath(link) == str(log.resolve()) for link in Path("/proc/self/fd").iterdir())

    with VLLMMonitor(FAST, enable_persistence=False) as monitor:
        ticks = ticks_of(monitor)
        url = monitor.add_target(simulator.url, log_file=log)
        wait_until(lambda: bool(ticks), "a tick")
        assert open_here()
        monitor.remove_target(url)
        wait_until(lambda: not open_here(), "the log to be closed")


def test_a_second_process_follows_and_takes_over(simulator: SimulatorProcess, tmp_path: Path) -> None:
    leader = VLLMMonitor(FAST, persistence_config=store_in(tmp_path))
    follower = VLLMMonitor(FAST, persistence_config=store_in(tmp_path))
    url = leader.add_target(simulator.url)
    follower.add_target(simulator.url)
    try:
        leader.start()
        wait_until(lambda: url in leader.latest(), "the leader leads")
        follower.start()
        wait_until(lambda: url in follower.latest() and follower.get_system_health()["following"] == [url], "following")
        wait_until(
            lambda: "generation_tokens_per_second" in follower.latest()[url].snapshot.values, "the leader's figures"
        )
        assert "by the process that watches" in follower.latest()[url].snapshot.reason
        leader.close()
        wait_until(lambda: follower.get_system_health()["following"] == [], "the follower leads")
    finally:
        leader.close()
        follower.close()


def test_a_store_that_cannot_be_opened_does_not_stop_the_watch(simulator: SimulatorProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = PersistenceConfig(storage_dir=tmp_path / "file" / "store")
    with VLLMMonitor(FAST, persistence_config=config) as monitor:
        ticks = ticks_of(monitor)
        monitor.add_target(simulator.url)
        wait_until(lambda: len(ticks) >= 5, "five ticks")
        assert monitor.persistence_manager is not None
        assert not monitor.persistence_manager.health().ok


def test_a_paused_server_is_paused_not_stalled(simulator: SimulatorProcess) -> None:
    import urllib.request

    def post(path: str) -> None:
        request = urllib.request.Request(simulator.url + path, method="POST")  # noqa: S310  # our own server
        urllib.request.urlopen(request, timeout=5).close()  # noqa: S310

    with VLLMMonitor(FAST, enable_persistence=False) as monitor:
        ticks = ticks_of(monitor)
        url = monitor.add_target(simulator.url)
        wait_until(lambda: len(ticks) >= 3, "three ticks")
        post("/pause?mode=keep")
        try:
            wait_until(lambda: monitor.latest()[url].snapshot.condition.value == "paused", "paused")
        finally:
            post("/resume")
        wait_until(lambda: monitor.latest()[url].snapshot.condition.value in ("ok", "idle", "starved"), "well again")
    assert "stalled" not in {tick.snapshot.condition.value for tick in ticks}


def test_sigterm_flushes_and_ends_as_it_would_have(simulator: SimulatorProcess, tmp_path: Path) -> None:
    code = f"""
import signal
from pathlib import Path
from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig
monitor = VLLMMonitor(MonitorConfig(interval_seconds=0.2), handle_signals=True,
    persistence_config=PersistenceConfig(storage_dir=Path({str(tmp_path / "store")!r})))
monitor.add_target({simulator.url!r})
seen = []
monitor.add_listener(lambda tick: (seen.append(tick), len(seen) == 5 and print("ready", flush=True)))
monitor.start()
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(15) == -signal.SIGTERM
    with VLLMMonitor(FAST, persistence_config=store_in(tmp_path)) as reader:
        assert reader.persistence_manager is not None
        assert reader.persistence_manager.get_events("monitor_stopped")


def test_a_frozen_server_process_is_api_frozen(tmp_path: Path) -> None:
    with (
        SimulatorProcess(seed=2) as process,
        VLLMMonitor(MonitorConfig(interval_seconds=0.2, timeout_seconds=0.5), enable_persistence=False) as monitor,
    ):
        url = monitor.add_target(process.url)
        wait_until(lambda: url in monitor.latest(), "a tick")
        os.kill(process.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: monitor.latest()[url].snapshot.condition.value == "api_frozen", "api_frozen")
        finally:
            os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: monitor.latest()[url].snapshot.condition.value in ("ok", "idle", "starved"), "well again")


def test_guardrails_of_one_s_own_survive_a_restart(tmp_path: Path) -> None:
    with VLLMMonitor(FAST, persistence_config=store_in(tmp_path)) as monitor:
        monitor.register_guardrail("mine", "Requests wait", "requests_waiting > 50.0 for 1m", severity="critical")
        with pytest.raises(InvalidConditionError, match="not a function"):
            monitor.register_guardrail("code", "", lambda: True)  # type: ignore[arg-type]  # that is the point
        monitor.guardrails.enable("engine_stall", enabled=False)
        assert monitor.persist_guardrails() == 2
    again = VLLMMonitor(FAST, persistence_config=store_in(tmp_path))
    assert again.guardrails.get("mine").policy.severity == "critical"
    assert not again.guardrails.get("engine_stall").policy.enabled
    again.close()


def test_objectives_are_settings() -> None:
    monitor = VLLMMonitor(MonitorConfig(ttft_objective_seconds=0.5), enable_persistence=False)
    assert "> 0.5 " in monitor.guardrails.get("ttft_over_objective").policy.condition
    assert monitor.persist_guardrails() == 0
    monitor.close()
