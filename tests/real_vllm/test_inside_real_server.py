"""The part inside a real server: what it tells is what the clients and the server's own metrics say."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import run
from tests.real_vllm.clients import complete, completion, crowd, lever, refused, stream
from tests.real_vllm.compatibility import (
    BUCKET,
    HISTOGRAMS,
    PHASES,
    QUEUE_REJECTIONS,
    Hooks,
    check_row,
    hooks_of,
    observe,
    plugin_server,
)
from tests.waiting import wait_until

import vllm_env
from vllm_load import LoadGenerator
from vllm_monitor.core import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Severity
from vllm_server import VllmServer

WARM_UP_SECONDS = 15.0
LOAD_SECONDS = 60.0
MOST_GROWTH_MIB = 4.0


@pytest.fixture(scope="module")
def hooks(vllm_environment: vllm_env.VllmEnvironment) -> Hooks:
    return hooks_of(vllm_environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inside")


@pytest.fixture(scope="module")
def spool(folder: Path) -> Path:
    return folder / "spool"


@pytest.fixture(scope="module")
def server(vllm_environment: vllm_env.VllmEnvironment, hooks: Hooks, folder: Path) -> Iterator[VllmServer]:
    with plugin_server(vllm_environment, hooks, folder) as started:
        yield started


def test_requests_and_histograms_are_those_of_client_and_server(
    server: VllmServer, spool: Path, tmp_path: Path
) -> None:
    complete(server, 0)  # warm
    config = MonitorConfig(targets=(server.url,), interval_seconds=0.5, spool_dir=spool, predict=False)
    store = PersistenceConfig(storage_dir=tmp_path / "store")
    with VLLMMonitor(config, persistence_config=store):
        seen = []
        for number in range(1, 31):
            seen.append(complete(server, number))
            time.sleep(0.2)
        time.sleep(3.0)
        page = server.get("/metrics")
    (shown,) = json.loads(run("status", "--json", "--storage-dir", tmp_path / "store").stdout)["targets"]
    assert (shown["requests"]["count"], shown["requests"]["output_tokens"]) == (31, 31 * 16)
    (prompt_tokens,) = re.findall(r"^vllm:prompt_tokens_total\S* (\S+)$", page, re.MULTILINE)
    assert shown["requests"]["prompt_tokens"] == float(prompt_tokens)
    with PersistenceManager(store) as kept:
        requests = [one for one in kept.get_requests(limit=None, target=server.url) if one.finish_reason == "length"]
        assert len(requests) == 31
        told = {one.metadata["server_request_id"]: one for one in requests}
        assert sum(one.output_tokens or 0 for one in requests) == 31 * 16
        assert {used for _, used, _ in seen} == {16}
        first = [one.time_to_first_token_seconds for one in requests[:30]]
        ours = statistics.median(value for value in first if value is not None)
        theirs = statistics.median(value for value, _, _ in seen)
        print(f"median TTFT: {ours * 1000:.1f} ms inside, {theirs * 1000:.1f} ms at the client")
        assert abs(ours - theirs) <= 0.025
        assert len(told) == 31
        assert all(one.queue_seconds is not None and one.met_objective for one in requests[:30])
        buckets = {(name, bound): float(count) for name, bound, count in BUCKET.findall(page)}
        inside = {
            (
                sample["metric_name"].removeprefix("vllm_monitor_engine_").removesuffix("_bucket"),
                sample["tags"]["le"],
            ): sample["value"]
            for sample in kept.latest(target=server.url)
            if sample["metric_name"].startswith("vllm_monitor_engine_") and "le" in sample["tags"]
        }
        compared = {key for key in buckets if key[0] in HISTOGRAMS}
        assert len({name for name, _ in compared}) == len(HISTOGRAMS)
        assert {key: inside.get(key) for key in compared} == {key: buckets[key] for key in compared}


def test_a_frozen_engine_is_told_within_five_seconds(server: VllmServer, spool: Path, tmp_path: Path) -> None:
    engine = server.process("engine")
    events: list[tuple[float, str]] = []
    config = MonitorConfig(targets=(server.url,), interval_seconds=0.5, spool_dir=spool, predict=False)
    monitor = VLLMMonitor(config, persistence_config=PersistenceConfig(storage_dir=tmp_path / "store"))
    monitor.add_listener(lambda tick: events.extend((one.timestamp, one.event_type) for one in tick.events))
    with monitor:
        wait_until(monitor.latest, "a first look")
        os.kill(engine.pid, signal.SIGSTOP)  # while it is idle: the page of metrics will never tell
        client = threading.Thread(target=complete, args=(server, 1, 100))
        client.start()
        asked_at = time.time()
        try:
            wait_until(lambda: any(kind == "inside_stalled" for _, kind in events), "the stall", 10)
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        told_at = next(at for at, kind in events if kind == "inside_stalled")
        print(f"told {told_at - asked_at:.1f} s after the first request that got no answer")
        assert told_at - asked_at <= 5.0
        client.join()
        wait_until(lambda: any(kind == "inside_stall_over" for _, kind in events), "its end", 10)


def test_all_of_it_works_as_the_table_says(
    server: VllmServer, hooks: Hooks, spool: Path, tmp_path: Path, vllm_environment: vllm_env.VllmEnvironment
) -> None:
    check_row(vllm_environment.version, observe(server, hooks, spool, tmp_path))


def test_memory_is_flat_under_load(server: VllmServer, spool: Path) -> None:
    """The first third of the load against the last one: what is kept for each step or request would show."""
    api = server.process("api")
    resident: list[int] = []
    with LoadGenerator(server.url, server.model, requests_per_second=4.0, max_tokens=(8, 32)) as load:
        time.sleep(WARM_UP_SECONDS)
        ends_at = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < ends_at:
            resident.append(api.memory_info().rss)
            time.sleep(0.5)
        counts = load.stop()
    third = len(resident) // 3
    before, after = (statistics.median(part) / 2**20 for part in (resident[:third], resident[-third:]))
    print(f"{before:.1f} MiB, then {after:.1f} MiB; {counts}")
    assert counts.ok > LOAD_SECONDS
    assert after - before < MOST_GROWTH_MIB
    totals = [line for file in spool.iterdir() for line in file.read_text().splitlines() if '"kind":"totals"' in line]
    last = json.loads(totals[-1])
    assert last["lost_steps"] == last["lost_lines"] == last["faults"] == 0


def test_requests_are_found_and_ended_by_age_and_one_client_is_held_back(server: VllmServer) -> None:
    with long_request(server) as told:
        (one,) = lever(server, "requests")["requests"]
        assert one["age_seconds"] < 30
        assert lever(server, "admission-limit", {"limit": 10, "client_limit": 1, "for_seconds": 60})["done"]
        refused(server, 2)
        lever(server, "admission-limit", {"limit": None})
        assert lever(server, "abort", {"older_than_seconds": 60})["asked"] == 0
        time.sleep(0.1)
        by_age = lever(server, "abort", {"older_than_seconds": 0.05})
        assert (by_age["asked"], len(by_age["aborted"])) == (1, 1)
    assert {choice["finish_reason"] for piece in told for choice in piece["choices"]} <= {"abort"}
    assert len(told) < 900


@contextlib.contextmanager
def long_request(server: VllmServer) -> Iterator[list[dict[str, Any]]]:
    """A request of 900 tokens, streamed, in a pause so that it cannot be over early; when the block ends it goes on."""
    told: list[dict[str, Any]] = []
    body = {**completion(server, 1, 900), "stream_options": None}
    client = threading.Thread(target=lambda: told.extend(stream(server, body)))
    assert lever(server, "pause", {"mode": "keep", "for_seconds": 30})["is_paused"]
    client.start()
    wait_until(lambda: lever(server, "status")["in_flight"] == 1, "that it is there")
    yield told
    lever(server, "resume", {})
    client.join()


def inside(store: PersistenceConfig, target: str) -> list[dict[str, Any]]:
    """What was told inside, as the checkpoints of a server keep it, oldest first."""
    with PersistenceManager(store) as kept:
        checkpoints = kept.get_checkpoints(limit=None, target=target)[::-1]
    for before, after in itertools.pairwise(checkpoints):
        assert before.timestamp <= after.timestamp
        assert after.previous_state is before.state, "one chain, whoever told it"
    for one in checkpoints:
        print(one.timestamp, one.state, one.condition, one.metadata.get("inside", {}).get("words", one.reason))
    return [{**one.metadata["inside"], "metrics": one.metrics} for one in checkpoints if "inside" in one.metadata]


def one_life(
    vllm_environment: vllm_env.VllmEnvironment, folder: Path, port: int | None, most: int, *, moved: bool
) -> tuple[VllmServer, str]:
    """Watch a server from its start to its requested end; returns it, and its last page of metrics."""
    log = folder / f"{most}.log"
    config = MonitorConfig(interval_seconds=0.5, spool_dir=folder / "spool", predict=False)
    monitor = VLLMMonitor(config, persistence_config=PersistenceConfig(storage_dir=folder / "store"))
    with monitor, contextlib.ExitStack() as ends:
        server = VllmServer(
            vllm_environment,
            log,
            development_routes=False,
            extra_args=("--max-num-seqs", str(most), "--max-num-queued-reqs", "4"),
            port=port,
            plugin=vllm_env.ensure_plugin(),
            variables={
                "VLLMMON_ENABLED": "1",
                "VLLMMON_SPOOL_DIR": str(folder / "spool"),
                "VLLM_PLUGINS": "vllm_monitor,vllm_monitor_levers",
            },
        )
        ends.callback(server.stop)
        monitor.add_target(server.url, log_file=log)

        def condition() -> str:
            return str(monitor.latest()[server.url].snapshot.condition)

        server.wait_ready()
        complete(server, 0)
        if moved:
            crowd(server, 40)
            lever(server, "admission-limit", {"limit": 0, "for_seconds": 60})
            for _ in range(7):
                refused(server)
            lever(server, "admission-limit", {"limit": None})
            time.sleep(1.5)  # what is counted has the time of the next line
            lever(server, "pause", {"mode": "keep", "for_seconds": 3})
            wait_until(lambda: condition() == "paused", "the pause", 5)
            wait_until(lambda: condition() != "paused", "its end", 8)
        page = server.get("/metrics")
        server.process("api").terminate()
        wait_until(lambda: condition() == "stopped", "the shutdown", 30)
        time.sleep(2.0)  # for what is told last
    return server, page


def test_a_life_is_told_from_start_to_end(vllm_environment: vllm_env.VllmEnvironment, tmp_path: Path) -> None:
    server, page = one_life(vllm_environment, tmp_path, None, 8, moved=True)
    one_life(vllm_environment, tmp_path, server.port, 4, moved=False)
    (blocks,), (size,) = (re.findall(rf'[{{,]{name}="(\d+)"', page) for name in ("num_gpu_blocks", "block_size"))
    store = PersistenceConfig(storage_dir=tmp_path / "store")
    told = inside(store, server.url)
    a_start = ["started", "engine_initialized", "application_ready"]
    assert [one["kind"] for one in told] == [*a_start, "rejected", "lever", "lever", "end", *a_start, "end"]
    capacity = int(blocks) * int(size)
    assert [one["metrics"].get("inside_kv_capacity_tokens") for one in told[:4]] == [capacity] * 3 + [None]
    ready = told[2]
    phases = [ready[f"{phase}_at"] for phase in PHASES]
    assert phases == sorted(phases)
    assert ready["phase_seconds"]["startup"] > ready["phase_seconds"]["engine_client"] > 1.0
    assert (told[4]["lever"], told[5]["lever"], told[5]["by_itself"]) == ("pause", "resume", True)
    assert "config_changed" not in told[0]
    assert told[7]["config_changed"] == ["max_num_seqs"]
    assert told[0]["config_fingerprint"] != told[7]["config_fingerprint"]
    with PersistenceManager(store) as kept:
        most: dict[str, float] = {}
        for one in kept.get_metrics(metric_name="vllm_monitor_engine_rejected_requests_total", limit=None):
            most[one["tags"]["reason"]] = max(one["value"], most.get(one["tags"]["reason"], 0.0))
        assert most.pop("gate_limit") == 7, "as the client saw it"
        assert most.pop("max_num_queued_reqs") == float(QUEUE_REJECTIONS.findall(page)[0]) > 0, "as vLLM says itself"
        assert set(most.values()) == {0}
        (event,) = kept.get_events(event_type="inside_rejected", target=server.url)
        assert event.severity is Severity.WARNING


def test_a_batch_without_a_server_is_stored(vllm_environment: vllm_env.VllmEnvironment, tmp_path: Path) -> None:
    variables = vllm_env.server_environment(vllm_environment, plugin=vllm_env.ensure_plugin())
    example = Path(__file__).parents[2] / "examples" / "offline_batch.py"
    command = [str(vllm_environment.python), str(example), str(vllm_environment.model_dir), str(tmp_path / "store")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    assert len(re.findall(r"^\d+ tokens in, 16 out in \d+\.\d\d s$", done.stdout, re.MULTILINE)) == 8
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as kept:
        requests = kept.get_requests(limit=None, target="offline")
        assert {one.finish_reason for one in requests} == {"length"}
        names = {sample["metric_name"] for sample in kept.latest(target="offline")}
        assert "vllm_monitor_engine_generation_tokens_total" in names
