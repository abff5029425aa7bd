"""When the process inside reached what of its start."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.engine.test_recorder import Clock

from vllm_monitor_engine import endpoint_plugin, host_process
from vllm_monitor_engine.endpoint_plugin import MonitorEndpoints
from vllm_monitor_engine.recorder import Recorder
from vllm_monitor_engine.server_facts import process_start_time
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool
from vllm_monitor_engine.startup_phases import StartupPhases, process_started_at


def test_a_process_is_as_old_as_it_is() -> None:
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = process_started_at(process_start_time(child.pid), time.time())
        child.communicate(b"\n")
    assert started is not None
    assert before - 0.05 <= started <= time.time()


@pytest.mark.parametrize("ticks", [None, "many", -1e30, 1e30])
def test_a_start_that_is_not_known_is_left_out(ticks: Any) -> None:
    assert process_started_at(ticks, 1_000.0) is None
    assert set(StartupPhases({"process_started": ticks, "t": 5.0}).reach("engine_initialized")) == {
        "engine_client_at",
        "engine_initialized_at",
    }


def test_what_is_learned_late_is_in_the_headers_of_later_segments(tmp_path: Path) -> None:
    clock = Clock()
    cache = SimpleNamespace(num_gpu_blocks=None, block_size=16)
    header: dict[str, Any] = {"pid": 1, "t": clock.now}
    spool = Spool(tmp_path, "1-1-1", 8 * 4096, header)
    phases = StartupPhases(header, SimpleNamespace(cache_config=cache), clock)
    spool.write([{"kind": "first"}])
    clock.now += 2.0
    cache.num_gpu_blocks = 100
    assert phases.reach("engine_initialized") == {
        "num_gpu_blocks": 100,
        "block_size": 16,
        "kv_capacity_tokens": 1600,
        "engine_client_at": 1_000.0,
        "engine_initialized_at": 1_002.0,
    }
    spool.write([{"kind": "long", "text": "x" * 5_000}])
    first, second = [json.loads(path.read_text().splitlines()[0]) for path in sorted(tmp_path.glob("*.spool"))]
    assert "kv_capacity_tokens" not in first
    assert (second["kv_capacity_tokens"], second["engine_initialized_at"]) == (1600, 1_002.0)


class App:
    """As much of an application as the plugin asks for."""

    user_middleware = ()

    def mount(self, *_: Any) -> None: ...

    def add_middleware(self, *_: Any) -> None: ...


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    made = Recorder(EngineSettings(enabled=True), Spool(tmp_path, "1-1-1", 1_000_000, {"pid": os.getpid()}))
    monkeypatch.setattr(host_process, "_recorder", made)
    yield made
    made.stop()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.spool")) for line in file.read_text().splitlines()]


def test_the_endpoint_plugin_tells_when_the_application_is_ready(recorder: Recorder, tmp_path: Path) -> None:
    plugin = MonitorEndpoints()
    plugin.attach_router(App())
    asyncio.run(plugin.init_state(SimpleNamespace(), None, None))
    recorder.turn()
    (ready,) = [line for line in lines(tmp_path) if line["kind"] == "application_ready"]
    assert ready["engine_client_at"] <= ready["application_built_at"] <= ready["application_ready_at"]


def test_whether_a_lever_has_paused_is_told_with_all_totals(recorder: Recorder, tmp_path: Path) -> None:
    for lever, done, paused in (("pause", True, 1), ("resume", False, 1), ("resume", True, 0), ("pause", False, 0)):
        endpoint_plugin._note("lever", lever=lever, done=done)
        recorder.turn(last=True)
        assert lines(tmp_path)[-1]["paused"] == paused
