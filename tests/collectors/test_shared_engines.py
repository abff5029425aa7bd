"""Stalls of engines that several API servers share are told by all of them together."""

from __future__ import annotations

from vllm_monitor.collectors.shared_engines import SharedEngines
from vllm_monitor.records import EngineObservation


def line(
    server: str,
    at: float,
    stalled: float,
    step_age: float | None,
    in_flight: float = 1.0,
    is_paused: bool | None = None,
) -> EngineObservation:
    return EngineObservation(
        target="http://127.0.0.1:8000",
        timestamp=at,
        api_server=server,
        layout=None,
        values=None,
        in_flight=in_flight,
        oldest_request_seconds=None,
        step_age_seconds=step_age,
        stalled_seconds=stalled,
        lost=0,
        faults=0,
        rejected={},
        is_paused=is_paused,
        requests=(),
        notes=(),
    )


def kinds(one: EngineObservation) -> list[str]:
    return [note.kind for note in one.notes]


def test_who_waits_behind_the_requests_of_another_is_not_stalled() -> None:
    engines = SharedEngines()
    for second in range(60):
        busy = engines.judge(line("0", 1_000.0 + second, 0.0, 0.01))
        waits = engines.judge(line("1", 1_000.5 + second, float(second), float(second)))
        assert (busy.stalled_seconds, waits.stalled_seconds) == (0.0, 0.0)
        assert not kinds(busy) + kinds(waits)


def test_when_nobody_sees_a_step_it_is_told_once_and_its_end_once() -> None:
    engines = SharedEngines()
    told = []
    for second in range(20):
        is_over = second >= 12
        age = 0.1 if is_over else float(second)
        for server, offset in (("0", 0.0), ("1", 0.5)):
            stalled = age if age >= 3.0 else 0.0
            one = engines.judge(line(server, 1_000.0 + second + offset, stalled, age))
            told += [(note.kind, note.timestamp) for note in one.notes]
    assert told == [("stalled", 1_003.5), ("stall_over", 1_012.5)]


def test_one_that_is_idle_speaks_for_nobody() -> None:
    engines = SharedEngines()
    engines.judge(line("0", 1_000.0, 0.0, None, 0.0))
    engines.judge(line("1", 1_000.0, 0.0, 900.0, 0.0))
    stalled = engines.judge(line("0", 1_004.0, 4.0, None))
    assert stalled.stalled_seconds == 4.0
    (note,) = stalled.notes
    assert (note.kind, note.facts) == ("stalled", {"in_flight": 1.0, "seconds": 4.0})


def test_one_that_is_gone_holds_up_no_end() -> None:
    engines = SharedEngines()
    engines.judge(line("1", 1_000.0, 0.0, 10.0))
    assert kinds(engines.judge(line("0", 1_000.0, 10.0, 10.0))) == ["stalled"]
    assert not kinds(engines.judge(line("1", 1_004.0, 0.0, 0.1)))
    assert kinds(engines.judge(line("1", 1_006.0, 0.0, 0.1))) == ["stall_over"]


def test_a_pause_that_one_was_asked_for_is_no_stall_of_the_others() -> None:
    engines = SharedEngines()
    engines.judge(line("0", 1_000.0, 0.0, 0.1, is_paused=True))
    seen = []
    for second in range(1, 10):
        engines.judge(line("0", 1_000.0 + second, 0.0, float(second), is_paused=True))
        seen.append(engines.judge(line("1", 1_000.5 + second, float(second), float(second))))
    assert {(one.stalled_seconds, one.is_paused, one.notes) for one in seen} == {(0.0, True, ())}
    # The other one is asked to end it; the first one does not know.
    ended = engines.judge(line("1", 1_010.5, 0.0, 0.1, is_paused=False))
    assert ended.is_paused is False
    assert engines.judge(line("0", 1_011.0, 0.0, 0.1, is_paused=True)).is_paused is False
    engines.judge(line("1", 1_015.0, 4.0, 4.0, is_paused=False))
    assert kinds(engines.judge(line("1", 1_015.5, 4.5, 4.5, is_paused=False))) == []
    assert engines.judge(line("0", 1_016.0, 5.0, 5.0, is_paused=True)).stalled_seconds > 0
