"""Failures over a restart of the monitor: none is repeated, none is lost, each is over once."""

from __future__ import annotations

import pytest
from tests.failures.pictures import CALM, FULL, snapshot

from vllm_monitor.failures import Episode, Facts, FailureWatch, episodes_of, event_of
from vllm_monitor.records import Condition, LifecycleState


def resumed(*episodes: Episode, now: float, last_seen: float) -> FailureWatch:
    """A new watch that knows what was stored."""
    watch = FailureWatch("x")
    stored = episodes_of(event_of(one) for one in episodes)
    watch.resume(stored, now, last_seen)
    return watch


def happened(failure_type: str, at: float = 5.0, ended_at: float | None = None) -> Episode:
    return Episode("x", failure_type, at, at, ended_at, reason="said then")


def test_a_failure_that_goes_on_is_not_told_again_and_is_over_once() -> None:
    watch = resumed(happened("kv_exhaustion"), now=100.0, last_seen=90.0)
    assert [one.failure_type for one in watch.current()] == ["kv_exhaustion"]
    assert [watch.observe(snapshot(float(now), FULL), Facts()) for now in range(100, 120)] == [[]] * 20
    told = [one for now in range(120, 150) for one in watch.observe(snapshot(float(now), CALM), Facts())]
    assert [(one.happened_at, one.ended_at, one.reason, one.ended_unseen) for one in told] == [
        (5.0, 119.0, "said then", False)
    ]


def test_one_that_ended_while_nobody_watched_ended_when_it_was_last_seen() -> None:
    watch = resumed(happened("kv_exhaustion"), now=1_000.0, last_seen=90.0)
    told = [one for now in range(1_000, 1_030) for one in watch.observe(snapshot(float(now), CALM), Facts())]
    assert [(one.ended_at, one.ended_unseen) for one in told] == [(90.0, True)]
    (read,) = episodes_of([event_of(told[0])])
    assert read == told[0]
    assert "while nobody could see it" in event_of(told[0]).message


def test_one_of_which_nothing_can_be_seen_is_over_in_the_end() -> None:
    watch = resumed(happened("kv_exhaustion"), now=1_000.0, last_seen=90.0)
    told = {now: watch.observe(snapshot(float(now)), Facts()) for now in range(1_000, 1_400)}
    ((now, (over,)),) = [(now, found) for now, found in told.items() if found]
    assert (now, over.ended_at, over.ended_unseen) == (1_301, 90.0, True)


def test_one_that_has_ended_is_left_alone_and_the_newest_counts() -> None:
    watch = resumed(
        happened("kv_exhaustion", 5.0), happened("kv_exhaustion", 50.0, ended_at=60.0), now=100.0, last_seen=90.0
    )
    assert watch.current() == []


def test_a_rate_that_is_not_known_at_once_ends_nothing() -> None:
    watch = resumed(happened("queue_saturation"), now=100.0, last_seen=99.0)
    assert watch.observe(snapshot(100.0, {"requests_waiting": 50.0}), Facts()) == []
    growing = {"requests_waiting": 50.0, "requests_waiting_growth_per_second": 1.0}
    assert [watch.observe(snapshot(100.0 + now, growing), Facts()) for now in range(6, 30)] == [[]] * 24
    assert watch.current()


@pytest.mark.parametrize("failure_type", ["engine_death", "worker_death", "api_death"])
def test_the_dead_stay_dead_when_no_process_is_left_to_look_at(failure_type: str) -> None:
    watch = resumed(happened(failure_type), now=100.0, last_seen=99.0)
    for now in range(100, 500):
        assert watch.observe(snapshot(float(now), condition=Condition.UNREACHABLE), Facts()) == []
    told = [one for now in range(500, 510) for one in watch.observe(snapshot(float(now), CALM), Facts())]
    assert [one.failure_type for one in told] == [failure_type]


def test_an_unreachable_server_has_not_died_for_that() -> None:
    watch = FailureWatch("x")
    for now in range(100):
        assert watch.observe(snapshot(float(now), condition=Condition.UNREACHABLE), Facts()) == []


def test_a_start_that_failed_stays_failed() -> None:
    watch = resumed(happened("startup_failure"), now=100.0, last_seen=99.0)
    for now in range(100, 150):
        look = snapshot(float(now), condition=Condition.API_DEAD, state=LifecycleState.CRITICAL_ERROR)
        assert watch.observe(look, Facts()) == []
    assert [one.failure_type for one in watch.current()] == ["startup_failure"]


def test_a_server_killed_for_its_memory_stays_so() -> None:
    watch = resumed(happened("memory_exhaustion"), now=100.0, last_seen=99.0)
    for now in range(100, 103):
        watch.observe(snapshot(float(now), condition=Condition.UNKNOWN), Facts())
    for now in range(103, 150):
        assert watch.observe(snapshot(float(now), condition=Condition.UNREACHABLE), Facts()) == []
    assert [one.failure_type for one in watch.current()] == ["memory_exhaustion"]


def test_what_could_not_be_told_is_known() -> None:
    watch = FailureWatch("x")
    watch.observe(snapshot(1.0, CALM), Facts())
    assert "kv_exhaustion" not in watch.undecided()
    assert {"memory_exhaustion", "fd_exhaustion", "latency_breach"} <= watch.undecided()
    watch.observe(snapshot(2.0, condition=Condition.UNKNOWN), Facts())
    assert "engine_stall" in watch.undecided()
