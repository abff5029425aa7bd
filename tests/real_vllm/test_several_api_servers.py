"""Several API servers before two engines: each sees a part, and the parts add up to what the clients saw."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from tests.real_vllm.clients import complete, lever
from tests.waiting import wait_until

import vllm_env
from vllm_monitor.core import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_server import VllmServer

REQUESTS = 60
TOKENS = 16
LONG_TOKENS = 900


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inside") / "spool"


@pytest.fixture(scope="module")
def server(
    vllm_environment: vllm_env.VllmEnvironment, spool: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("vllm")
    named = vllm_env.command_metadata(vllm_environment.version, folder / "metadata")
    with VllmServer(
        vllm_environment,
        folder / "server.log",
        development_routes=False,
        as_command=True,
        extra_args=("--api-server-count", "2", "--data-parallel-size", "2"),
        variables={
            "PYTHONPATH": f"{vllm_env.ensure_plugin()}{os.pathsep}{named}",
            "VLLMMON_ENABLED": "1",
            "VLLMMON_SPOOL_DIR": str(spool),
            "VLLM_PLUGINS": "vllm_monitor,vllm_monitor_levers",
        },
    ) as started:
        yield started


def watch(server: VllmServer, spool: Path, store: PersistenceConfig) -> VLLMMonitor:
    config = MonitorConfig(targets=(server.url,), interval_seconds=0.5, spool_dir=spool, predict=False)
    return VLLMMonitor(config, persistence_config=store)


async def ask(server: VllmServer, requests: int) -> int:
    """So many requests, a few at once, each over a connection of its own; returns the tokens that came back."""
    few = asyncio.Semaphore(4)

    async def one(number: int) -> int:
        body = {"model": server.model, "prompt": f"{number} " * 8, "max_tokens": TOKENS, "ignore_eos": True}
        async with few, aiohttp.ClientSession() as session:
            async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                used: int = (await answer.json())["usage"]["completion_tokens"]
            return used

    return sum(await asyncio.gather(*map(one, range(requests))))


def totals(kept: PersistenceManager, target: str, name: str) -> dict[str, float]:
    """The newest value of a metric, by API server; engines and reasons added up."""
    found: Counter[str] = Counter()
    for sample in kept.latest(target=target):
        if sample["metric_name"] == f"vllm_monitor_engine_{name}":
            found[sample["tags"]["api_server"]] += sample["value"]
    return dict(found)


def test_parts_add_up_and_nothing_is_stored_twice(server: VllmServer, spool: Path, tmp_path: Path) -> None:
    store = PersistenceConfig(storage_dir=tmp_path / "store")
    with watch(server, spool, store):
        tokens = asyncio.run(ask(server, REQUESTS))
        time.sleep(3.0)
    with watch(server, spool, store) as again:  # which reads on from where the first one stopped
        wait_until(again.latest, "a look")
        tokens += asyncio.run(ask(server, REQUESTS))
        time.sleep(3.0)
    assert tokens == 2 * REQUESTS * TOKENS
    with PersistenceManager(store) as kept:
        requests = kept.get_requests(limit=None, target=server.url)
        assert Counter(one.finish_reason for one in requests) == {"length": 2 * REQUESTS}
        assert len({one.metadata["server_request_id"] for one in requests}) == 2 * REQUESTS
        assert {one.engine for one in requests} == {0, 1}
        assert sum(one.output_tokens or 0 for one in requests) == tokens
        for name in ("generation_tokens_total", "inter_token_latency_seconds_count", "finished_requests_total"):
            print(name, totals(kept, server.url, name))
        generated = totals(kept, server.url, "generation_tokens_total")
        assert generated.keys() == {"0", "1"}
        assert all(generated.values())
        assert sum(generated.values()) == tokens
        assert sum(totals(kept, server.url, "finished_requests_total").values()) == 2 * REQUESTS
        assert sum(totals(kept, server.url, "e2e_request_latency_seconds_count").values()) == 2 * REQUESTS
        assert not totals(kept, server.url, "num_requests_running"), "each would tell the whole"
        assert set(totals(kept, server.url, "faults_total").values()) == {0}
        times = [
            (s["timestamp"], s["tags"]["api_server"])
            for s in kept.get_metrics(metric_name="vllm_monitor_engine_in_flight_requests", limit=None)
        ]
        assert len(set(times)) == len(times)
        assert not kept.get_events(event_type="inside_stalled", target=server.url)


def test_who_sees_no_step_is_not_stalled_while_another_does(server: VllmServer, spool: Path, tmp_path: Path) -> None:
    """One long request at a time, so that for seconds on end only one API server sees steps."""
    store = PersistenceConfig(storage_dir=tmp_path / "store")
    with watch(server, spool, store) as monitor:
        conditions = set()
        monitor.add_listener(lambda tick: conditions.add(str(tick.snapshot.condition)))
        for number in range(4):
            complete(server, number, LONG_TOKENS)
        time.sleep(5.0)
    assert "stalled" not in conditions
    with PersistenceManager(store) as kept:
        assert not kept.get_events(event_type="inside_stalled", target=server.url)


def test_a_pause_holds_for_all_of_them_and_is_no_stall(server: VllmServer, spool: Path, tmp_path: Path) -> None:
    store = PersistenceConfig(storage_dir=tmp_path / "store")
    clients = [threading.Thread(target=complete, args=(server, number, TOKENS)) for number in range(4)]
    conditions: list[str] = []
    with watch(server, spool, store) as monitor:
        wait_until(monitor.latest, "a first look")
        assert lever(server, "pause", {"mode": "keep", "for_seconds": 60})["is_paused"]
        # Each call is a connection of its own, which either of them may take.
        assert all(lever(server, "status")["is_paused"] for _ in range(8))
        for client in clients:
            client.start()
        monitor.add_listener(lambda tick: conditions.append(str(tick.snapshot.condition)))
        time.sleep(6.0)
        assert not lever(server, "resume", {})["is_paused"]
        assert not any(lever(server, "status")["is_paused"] for _ in range(8))
        for client in clients:
            client.join(20)
            assert not client.is_alive()
        wait_until(lambda: conditions[-1] != "paused", "that the end of the pause is seen", 10)
    assert "paused" in conditions
    assert "stalled" not in conditions
    with PersistenceManager(store) as kept:
        assert not kept.get_events(event_type="inside_stalled", target=server.url)


def test_engines_that_stop_are_told_by_all_together(server: VllmServer, spool: Path, tmp_path: Path) -> None:
    engines = server.processes("engine")
    assert len(engines) == 2
    store = PersistenceConfig(storage_dir=tmp_path / "store")
    events: list[tuple[float, str]] = []
    monitor = watch(server, spool, store)
    monitor.add_listener(lambda tick: events.extend((one.timestamp, one.event_type) for one in tick.events))
    with monitor:
        wait_until(monitor.latest, "a first look")
        for engine in engines:
            engine.send_signal(signal.SIGSTOP)
        clients = [threading.Thread(target=complete, args=(server, number, TOKENS)) for number in range(4)]
        for client in clients:
            client.start()
        asked_at = time.time()
        try:
            wait_until(lambda: any(kind == "inside_stalled" for _, kind in events), "the stall", 10)
        finally:
            for engine in engines:
                engine.send_signal(signal.SIGCONT)
        told_at = next(at for at, kind in events if kind == "inside_stalled")
        print(f"told {told_at - asked_at:.1f} s after the first request that got no answer")
        assert told_at - asked_at <= 6.0
        for client in clients:
            client.join()
        wait_until(lambda: any(kind == "inside_stall_over" for _, kind in events), "its end", 10)
