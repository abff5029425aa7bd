"""A server that dies while its memory grows was killed for it; others were not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.failures.pictures import snapshot

from vllm_monitor.failures import Facts, FailureWatch
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import Condition, ProcessInfo

GROWING = "api_resident_memory_growth_bytes_per_second"


def types_after(
    memory: Callable[[int], float], *deaths: Condition, seconds: int = 100, slope: float = 1e7, alive: bool = False
) -> list[str]:
    """What happens to a server with this memory that is then found in these conditions, five seconds each."""
    watch = FailureWatch("x")
    for now in range(seconds):
        watch.observe(snapshot(float(now), {"api_resident_memory_bytes": memory(now), GROWING: slope}), Facts())
    found = []
    for number, condition in enumerate(deaths):
        for now in range(5):
            look: Snapshot = snapshot(seconds + number * 5.0 + now, condition=condition)
            if alive:
                api = ProcessInfo(pid=1, role="api", state="sleeping", cpu_seconds=0.0, rss_bytes=1, fds=1, threads=1)
                look = replace(look, processes=(api,), health_status=503)
            found += watch.observe(look, Facts())
    return [one.failure_type for one in found if one.ended_at is None]


def leak(now: int) -> float:
    return 1e9 + now * 6e7


@pytest.mark.parametrize("deaths", [[Condition.API_DEAD], [Condition.UNREACHABLE], [Condition.ENGINE_DEAD]])
def test_it_died_while_its_memory_grew(deaths: list[Condition]) -> None:
    assert "memory_exhaustion" in types_after(leak, *deaths)


def test_it_may_be_frozen_or_unknown_in_between() -> None:
    found = types_after(leak, Condition.API_FROZEN, Condition.UNKNOWN, Condition.UNREACHABLE, Condition.API_DEAD)
    assert found.count("memory_exhaustion") == 1


@pytest.mark.parametrize(
    ("memory", "others"),
    [
        (lambda _: 1e9, {}),
        (lambda now: 1e9 + now * 1e5, {}),  # by less than a fifth
        (leak, {"seconds": 50}),
        (lambda now: leak(now) if now < 90 else leak(10), {}),  # it fell
        (lambda now: leak(min(now, 60)), {"slope": 0.0}),  # it grew long ago
    ],
    ids=["steady", "little", "short", "fell", "was over"],
)
def test_its_memory_was_not_the_cause(memory: Callable[[int], float], others: dict[str, float]) -> None:
    assert types_after(memory, Condition.API_DEAD, **others) == ["api_death"]  # type: ignore[arg-type]


def test_an_engine_that_dies_alone_or_first_is_not_the_memory_of_its_api_server() -> None:
    assert types_after(leak, Condition.ENGINE_DEAD, alive=True) == ["engine_death"]
    watch = FailureWatch("x")
    for now in range(100):
        watch.observe(snapshot(float(now), {"api_resident_memory_bytes": leak(now), GROWING: 1e7}), Facts())
    first = replace(snapshot(100.0, condition=Condition.ENGINE_DEAD), health_status=503)
    found = watch.observe(first, Facts())
    for now in range(101, 120):
        found += watch.observe(snapshot(float(now), condition=Condition.ENGINE_DEAD), Facts())
    assert [one.failure_type for one in found] == ["engine_death"]


def test_what_its_memory_did_long_ago_says_nothing() -> None:
    assert "memory_exhaustion" in types_after(leak, *[Condition.API_FROZEN] * 10, Condition.API_DEAD)
    assert "memory_exhaustion" not in types_after(leak, *[Condition.API_FROZEN] * 13, Condition.API_DEAD)


@pytest.mark.parametrize("asked", [Condition.STOPPED, Condition.PAUSED, Condition.STARTING])
def test_one_that_was_asked_to_end_was_not_killed(asked: Condition) -> None:
    assert types_after(leak, asked) == []


@pytest.mark.parametrize("here", [{"host_memory_available_bytes": 1e10}, {}], ids=["local", "elsewhere"])
def test_it_is_over_when_the_server_is_back(here: dict[str, float]) -> None:
    watch, told = FailureWatch("x"), []
    for now in range(100):
        watch.observe(snapshot(float(now), {"api_resident_memory_bytes": leak(now), GROWING: 1e7}), Facts())
    for now in range(100, 110):
        told += watch.observe(snapshot(float(now), condition=Condition.API_DEAD), Facts())
    for now in range(110, 130):
        look = snapshot(float(now), {"api_resident_memory_bytes": 1e9, **here})
        told += watch.observe(look, Facts())
        assert "memory_exhaustion" not in watch.undecided()
    assert [(one.failure_type, one.ended_at is not None) for one in told if one.failure_type[:3] == "mem"] == [
        ("memory_exhaustion", False),
        ("memory_exhaustion", True),
    ]
