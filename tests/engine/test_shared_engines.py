"""Several API servers before the same engines: what each counts adds up, and none judges by what it cannot know."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.engine.steps import finished, iteration, scheduler
from tests.engine.test_recorder import Clock

from vllm_monitor_engine.recorder import InFlight, Recorder
from vllm_monitor_engine.server_facts import api_server_facts
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool


class ApiServer:
    """One of several, with requests of its own in flight."""

    def __init__(self, folder: Path, clock: Clock, rank: int) -> None:
        self.clock = clock
        self.folder = folder
        self.rank = rank
        self.flying: InFlight = (0, None)
        spool = Spool(folder, f"{rank + 1}-1-1", 1_000_000, {"pid": 1})
        settings = EngineSettings(enabled=True, spool_dir=folder)
        self.recorder = Recorder(
            settings, spool, wall=clock, monotonic=clock, in_flight=lambda: self.flying, shares_engines=True
        )

    def told(self, kind: str) -> list[dict[str, Any]]:
        files = sorted(self.folder.glob(f"{self.rank + 1}-*.spool"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.5)):
            self.clock.now += 0.5
            self.recorder.turn()


def test_parts_of_two_engines_add_up(tmp_path: Path) -> None:
    clock = Clock()
    servers = [ApiServer(tmp_path, clock, rank) for rank in range(2)]
    for number in range(100):
        clock.now += 0.01
        engine = number % 2
        # The engine gives both what is theirs, and one of them, in turn, what its scheduler says.
        for server in servers:
            said = scheduler(running=2) if server.rank == number // 2 % 2 else None
            part = iteration(finished(f"{number}-{server.rank}"), at=clock.now, ttft=(0.1,))
            server.recorder.record(engine, said, part)
    total: Counter[str] = Counter()
    requests = []
    for server in servers:
        server.recorder.turn()
        (line,) = server.told("totals")
        for engine, one in line["engines"].items():
            assert one["gauges"] == {}, "each would tell the whole"
            total.update({f"{engine} {name}": value for name, value in one["counters"].items()})
        requests += [name for one in server.told("requests") for name in one["id"]]
    for engine in (0, 1):
        assert total[f"{engine} steps"] == 50, "and not 100, though 100 messages came"
        assert total[f"{engine} generation_tokens"] == 200
        assert total[f"{engine} finished_requests"] == 100
        assert total[f"{engine} prefix_cache_queries"] == 500
    assert sorted(requests) == sorted(f"{number}-{rank}" for number in range(100) for rank in range(2))


def test_an_old_word_of_the_scheduler_moves_nothing(tmp_path: Path) -> None:
    clock = Clock()
    server = ApiServer(tmp_path, clock, 0)
    server.recorder.record(0, scheduler(running=3, waiting=5, kv=0.9), iteration())
    server.recorder.turn()
    assert server.recorder.load() == (5.0, 0.9)
    for _ in range(10):  # its own requests are done, and others have the engine: it is told nothing more
        clock.now += 1.0
        server.recorder.turn()
    assert server.recorder.load() == (0.0, 0.0)
    last = server.told("totals")[-1]
    assert (last["in_flight"], last["stalled_seconds"]) == (0, 0)
    assert not server.told("stalled")


def test_it_tells_how_long_its_own_requests_wait_and_judges_nothing(tmp_path: Path) -> None:
    clock = Clock()
    server = ApiServer(tmp_path, clock, 0)
    server.recorder.record(0, scheduler(running=3), iteration())
    server.recorder.turn()
    server.flying = (1, None)
    server.wait(4.0)
    last = server.told("totals")[-1]
    assert (last["in_flight"], last["stalled_seconds"], last["step_age_seconds"]) == (1, 3.5, 4.0), (
        "since it was first seen"
    )
    assert not server.told("stalled")


@pytest.mark.parametrize(("gap_seconds", "is_long"), [(2.0, False), (0.02, True)])
def test_its_usual_gap_is_one_through_which_its_requests_were_served(
    gap_seconds: float, is_long: bool, tmp_path: Path
) -> None:
    clock = Clock()
    server = ApiServer(tmp_path, clock, 0)
    for _ in range(30):
        clock.now += gap_seconds
        step = iteration()
        step.inter_token_latencies_iter = [gap_seconds]
        server.recorder.record(0, scheduler(), step)
        server.recorder.turn()
    # Nothing of its own for long, which says nothing about the engine, though it was busy when it last said so.
    clock.now += 300.0
    server.recorder.record(0, scheduler(), iteration())
    server.recorder.turn()
    server.flying = (1, None)
    server.wait(5.0)
    assert (server.told("totals")[-1]["stalled_seconds"] > 0) == is_long


@pytest.mark.parametrize(
    ("parallel", "facts"),
    [
        (SimpleNamespace(_api_process_rank=1, _api_process_count=2), {"api_server": 1, "api_servers": 2}),
        (SimpleNamespace(_api_process_rank=0, _api_process_count=1), {"api_server": 0, "api_servers": 1}),
        (SimpleNamespace(_api_process_rank=-1, _api_process_count=2), {}),
        (SimpleNamespace(_api_process_rank=2, _api_process_count=2), {}),
        (SimpleNamespace(_api_process_rank="1", _api_process_count=2), {}),
        (SimpleNamespace(_api_process_rank=0, _api_process_count=True), {}),
        (SimpleNamespace(), {}),
        (None, {}),
    ],
)
def test_which_of_how_many_it_is(parallel: Any, facts: dict[str, int]) -> None:
    assert api_server_facts(SimpleNamespace(parallel_config=parallel)) == facts


def test_a_pause_is_no_usual_gap(tmp_path: Path) -> None:
    clock = Clock()
    server = ApiServer(tmp_path, clock, 0)

    def step(gap_seconds: float) -> None:
        clock.now += gap_seconds
        said = iteration()
        said.inter_token_latencies_iter = [gap_seconds]
        server.recorder.record(0, None, said)
        server.recorder.turn()

    server.flying = (1, None)
    step(0.02)
    server.recorder.standing["paused"] = 1
    server.wait(30.0)
    assert server.told("totals")[-1]["stalled_seconds"] == 0
    server.recorder.standing["paused"] = 0
    step(0.02 + 30.0)
    step(0.02)
    server.wait(4.0)
    assert server.told("totals")[-1]["stalled_seconds"] > 0, "and not only after three times the pause"
