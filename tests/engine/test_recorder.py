"""The recorder: what it takes from the loop, what it tells, and that nothing of it comes back to the loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.engine.steps import finished, iteration, scheduler

from vllm_monitor_engine.recorder import Recorder
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool


class Clock:
    """One clock for both doors."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def make(folder: Path, clock: Clock, **further: Any) -> Recorder:
    settings = EngineSettings(enabled=True, spool_dir=folder, buffer_steps=further.pop("buffer_steps", 1_000))
    spool = Spool(folder, "1-1-1", 1_000_000, {"pid": 1})
    return Recorder(settings, spool, wall=clock, monotonic=clock, **further)


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.spool"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def requests_told(folder: Path) -> list[dict[str, Any]]:
    """The requests of all lines, one by one."""
    return [
        {name: column[place] for name, column in line.items() if isinstance(column, list)}
        for line in told(folder, "requests")
        for place in range(len(line["id"]))
    ]


def test_a_finished_request_is_told_with_its_figures(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock)
    recorder.record(0, scheduler(), iteration(finished("a"), finished("b", num_generation_tokens=1)))
    recorder.turn()
    first, second = requests_told(tmp_path)
    assert first["id"] == "a"
    assert first["reason"] == "stop"
    assert (first["ended"], first["duration_seconds"], first["decode_seconds"]) == (1_000.0, 2.0, 1.5)
    assert (first["prompt_tokens"], first["output_tokens"], first["queue_seconds"]) == (12, 31, 0.1)
    assert (second["id"], second["output_tokens"]) == ("b", 1)


def test_requests_of_different_shapes_keep_to_their_own_figures(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock())
    odd: list[Any] = [
        finished("a", duration=math.nan),
        finished("b", decode_time="long"),
        object(),
        finished("c", duration=7.0),
    ]
    of_another_version = SimpleNamespace(finished_requests=[finished("d")])
    recorder.record(0, scheduler(), iteration(*odd))
    recorder.record(0, None, of_another_version)
    recorder.turn()
    seen = [(one["id"], one["duration_seconds"], one["decode_seconds"]) for one in requests_told(tmp_path)]
    assert seen == [("a", None, 1.5), ("b", 2.0, None), ("", None, None), ("c", 7.0, 1.5), ("d", 2.0, 1.5)]


def test_more_requests_than_fit_a_line_are_all_told(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock())
    recorder.record(0, scheduler(), iteration(*(finished(f"{number}") for number in range(150))))
    recorder.turn()
    assert [one["id"] for one in requests_told(tmp_path)] == [f"{number}" for number in range(150)]


def test_a_line_that_cannot_be_put_into_words_holds_up_nothing(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock())
    recorder.note("odd", value=math.nan)
    recorder.note("odd", value={1, 2})
    recorder.note("fine")
    recorder.turn()
    assert len(told(tmp_path, "unwritable")) == 2
    assert len(told(tmp_path, "fine")) == 1


def test_totals_add_up_and_have_the_servers_own_buckets(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock, bounds=lambda: {"time_to_first_token_seconds": [0.1, 0.5]})
    for _ in range(100):
        recorder.record(0, scheduler(running=3), iteration(finished(), ttft=(0.1, 0.2, 9.0)))
    recorder.record(1, scheduler(running=5), None)
    recorder.turn()
    (line,) = told(tmp_path, "totals")
    first, second = line["engines"]["0"], line["engines"]["1"]
    assert first["counters"]["steps"] == 100
    assert first["counters"]["generation_tokens"] == 200
    assert first["counters"]["prefix_cache_hits"] == 400
    assert first["finished"] == {"stop": 100}
    assert first["histograms"]["time_to_first_token_seconds"]["counts"] == [100, 100, 100]
    assert first["histograms"]["request_queue_time_seconds"]["sum"] == pytest.approx(10.0)
    assert second["gauges"]["num_requests_running"] == 5
    assert line["in_flight"] == 8


def test_a_full_buffer_loses_steps_and_says_how_many(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock(), buffer_steps=10)
    for _ in range(25):
        recorder.record(0, scheduler(), None)
    recorder.turn()
    (line,) = told(tmp_path, "totals")
    assert line["engines"]["0"]["counters"]["steps"] == 10
    assert line["lost_steps"] == 15


class Explosive:
    """Whatever is asked of it fails."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((None, None), id="nothing"),
        pytest.param((object(), object()), id="unknown shapes"),
        pytest.param((Explosive(), Explosive()), id="it raises"),
        pytest.param((scheduler(kv=math.nan), iteration(finished(duration=math.nan))), id="not a number"),
        pytest.param(
            (SimpleNamespace(num_running_reqs="many"), SimpleNamespace(finished_requests=3)), id="other types"
        ),
    ],
)
def test_what_makes_no_sense_costs_that_step_alone(tmp_path: Path, shape: tuple[Any, Any]) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock)
    recorder.record(0, *shape)
    recorder.record(0, scheduler(), iteration(finished("good")))
    recorder.turn()
    assert "good" in [one["id"] for one in requests_told(tmp_path)]
    (line,) = told(tmp_path, "totals")
    assert line["engines"]["0"]["counters"]["finished_requests"] >= 1


def test_faults_of_what_it_asks_are_not_the_loops(tmp_path: Path) -> None:
    def broken() -> Any:
        raise MemoryError

    recorder = make(tmp_path, Clock(), bounds=broken, in_flight=broken)
    recorder.record(0, scheduler(), iteration(finished()))
    recorder.turn()
    assert requests_told(tmp_path)


def test_while_the_disk_takes_nothing_it_waits_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    recorder = make(tmp_path / "spool", clock)
    (tmp_path / "spool").write_text("a file where the folder should be")
    for number in range(12_000):
        recorder.record(0, scheduler(), iteration(finished(f"{number}")))
        if number % 500 == 0:
            recorder.turn()
    recorder.turn()
    assert recorder.lost_lines > 0
    (tmp_path / "spool").unlink()
    clock.now += 2.0
    recorder.turn()
    kept = requests_told(tmp_path / "spool")
    assert kept[-1]["id"] == "11999"
    assert 9_000 < len(kept) <= 10_000
    (totals,) = told(tmp_path / "spool", "totals")[-1:]
    assert recorder.lost_lines - 1 <= totals["lost_lines"] <= recorder.lost_lines, "its own line may push one out"


def test_a_sign_of_life_comes_while_nothing_happens(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock)
    for _ in range(20):
        clock.now += 0.5
        recorder.turn()
    assert len(told(tmp_path, "totals")) == 10


def stall_of(tmp_path: Path, clock: Clock, recorder: Recorder, seconds: float) -> list[dict[str, Any]]:
    for _ in range(int(seconds / 0.5)):
        clock.now += 0.5
        recorder.turn()
    return told(tmp_path, "stalled")


def busy(recorder: Recorder, clock: Clock, gap_seconds: float = 0.02, steps: int = 200) -> None:
    for _ in range(steps):
        clock.now += gap_seconds
        recorder.record(0, scheduler(running=2), None)
    recorder.turn()


def test_an_engine_that_stops_with_requests_in_flight_is_told_within_four_seconds(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock)
    busy(recorder, clock)
    assert len(stall_of(tmp_path, clock, recorder, 2.5)) == 0
    assert {one["engine"] for one in stall_of(tmp_path, clock, recorder, 1.5)} == {0, None}
    recorder.record(0, scheduler(running=2), None)
    recorder.turn()
    assert {one["engine"] for one in told(tmp_path, "stall_over")} == {0, None}


def test_one_of_two_engines_stops(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock)
    busy(recorder, clock)
    for _ in range(20):
        clock.now += 0.25
        recorder.record(1, scheduler(running=2), None)
        recorder.turn()
    assert [one["engine"] for one in told(tmp_path, "stalled")] == [0]


def test_an_idle_engine_that_takes_no_more_requests_is_told(tmp_path: Path) -> None:
    clock = Clock()
    waiting: list[float] = []
    in_flight: Callable[[], tuple[int, float | None]] = lambda: (  # noqa: E731
        len(waiting),
        clock.now - min(waiting) if waiting else None,
    )
    recorder = make(tmp_path, clock, in_flight=in_flight)
    recorder.record(0, scheduler(running=0), None)
    assert not stall_of(tmp_path, clock, recorder, 600.0), "nothing to do is no stall"
    waiting.append(clock.now)
    assert [one["engine"] for one in stall_of(tmp_path, clock, recorder, 3.5)] == [None]


def test_a_server_of_long_steps_is_not_stalled_by_them(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock)
    for _ in range(30):
        clock.now += 2.0
        recorder.record(0, scheduler(running=2), None)
        recorder.turn()
    assert not stall_of(tmp_path, clock, recorder, 5.0), "five seconds are three steps of it"
    assert stall_of(tmp_path, clock, recorder, 2.0)


def test_the_first_request_may_take_its_time(tmp_path: Path) -> None:
    clock = Clock()
    began = clock.now
    recorder = make(tmp_path, clock, in_flight=lambda: (1, clock.now - began))
    assert not stall_of(tmp_path, clock, recorder, 31.0)
    assert stall_of(tmp_path, clock, recorder, 31.0)


def test_a_pause_is_no_stall_neither_while_it_holds_nor_when_it_ends(tmp_path: Path) -> None:
    clock = Clock()
    began = clock.now
    recorder = make(tmp_path, clock, in_flight=lambda: (2, clock.now - began))
    busy(recorder, clock)
    recorder.standing["paused"] = 1
    assert not stall_of(tmp_path, clock, recorder, 60.0)
    recorder.standing["paused"] = 0
    assert not stall_of(tmp_path, clock, recorder, 2.5), "it may take a moment to go on"
    busy(recorder, clock)
    assert not stall_of(tmp_path, clock, recorder, 2.5)
    assert stall_of(tmp_path, clock, recorder, 1.5), "the pause has not made it patient"


def test_what_is_absent_in_one_step_is_counted_in_the_next(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock())
    without = scheduler()
    without.prefix_cache_stats = None
    recorder.record(0, without, None)
    recorder.turn()
    recorder.record(0, scheduler(), iteration())
    recorder.turn(last=True)
    (*_, line) = told(tmp_path, "totals")
    assert line["engines"]["0"]["counters"]["prefix_cache_hits"] == 4


def test_what_waits_for_the_disk_is_what_was_true_then(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path / "spool", clock)
    (tmp_path / "spool").write_text("a file where the folder should be")
    for _ in range(5):
        clock.now += 1.0
        recorder.record(0, scheduler(), iteration(tokens=10))
        recorder.turn()
    (tmp_path / "spool").unlink()
    clock.now += 1.0
    recorder.turn()
    lines = told(tmp_path / "spool", "totals")
    assert [line["engines"]["0"]["counters"]["generation_tokens"] for line in lines] == [10, 20, 30, 40, 50, 50]


def test_an_id_is_the_clients_and_is_cut(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock())
    recorder.record(0, scheduler(), iteration(finished("j" * 1_000_000)))
    recorder.turn()
    assert requests_told(tmp_path)[0]["id"] == "j" * 200


@pytest.mark.parametrize("jump_seconds", [-3600.0, 3600.0])
def test_a_clock_that_is_set_hides_no_stall_and_makes_none(tmp_path: Path, jump_seconds: float) -> None:
    clock = Clock()
    arrived: list[float] = []
    jumped = 0.0

    def in_flight() -> tuple[int, float | None]:
        return len(arrived), max(0.0, clock.now + jumped - min(arrived)) if arrived else None

    recorder = make(tmp_path, clock, in_flight=in_flight)
    recorder.record(0, scheduler(running=0), None)
    assert not stall_of(tmp_path, clock, recorder, 600.0)
    arrived.append(clock.now)
    jumped = jump_seconds
    assert not stall_of(tmp_path, clock, recorder, 2.0)
    assert stall_of(tmp_path, clock, recorder, 2.5)
