"""The monitor was away: the story goes on, the absence is part of it, and what happened meanwhile is told."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lifecycle.test_tracker import TARGET, C, Life, P, S

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.picture import ServerIdentity
from vllm_monitor.records import Layout, Series

BEFORE = ServerIdentity(start_time=500.0, generation_tokens_total=1_000.0, version="0.31.0", models=("m",))
PAGE = Layout([Series("vllm:generation_tokens_total")])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistenceManager]:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as opened:
        yield opened


def left_at_work(store: PersistenceManager) -> None:
    life = Life(store)
    life.tick(C.OK, identity=BEFORE)
    store.save_scrape(PAGE, array("d", [1_000.0]), timestamp=1_100.0, target=TARGET)
    store.flush_all()


def come_back(store: PersistenceManager, after: ServerIdentity, condition: C = C.OK) -> Life:
    life = Life(store, now=1_400.0)
    assert life.tick(C.UNKNOWN) is S.PROCESSING_REQUESTS
    assert life.told == []
    life.tick(condition, identity=after)
    return life


def test_nothing_happened(store: PersistenceManager) -> None:
    left_at_work(store)
    life = come_back(store, BEFORE)
    assert life.last.away_seconds == 301.0, "from the last stored sample to the first look"
    assert life.last.meanwhile == ("the same process ran on",)
    (resumed,) = life.told
    assert (resumed.previous_state, resumed.state) == (S.PROCESSING_REQUESTS, S.PROCESSING_REQUESTS)
    assert resumed.transition_type is None
    assert resumed.metadata["resumed"] == {
        "away_since": 1_100.0,
        "away_seconds": 301.0,
        "meanwhile": ["the same process ran on"],
    }
    life.tick(C.OK, identity=BEFORE)
    assert len(life.told) == 1


@pytest.mark.parametrize(
    ("after", "said", "restarts"),
    [
        (ServerIdentity(start_time=1_200.0), ["it was restarted: its process start time changed"], 1),
        (ServerIdentity(generation_tokens_total=10.0), ["it was restarted: its counters began anew"], 1),
        (
            ServerIdentity(start_time=500.0, version="0.32.0"),
            ["the same process ran on", "its version 0.31.0 became 0.32.0"],
            0,
        ),
        (ServerIdentity(models=("n",), generation_tokens_total=2_000.0), ["its model m became n"], 0),
        (ServerIdentity(), [], 0),
    ],
)
def test_what_happened_meanwhile(
    store: PersistenceManager, after: ServerIdentity, said: list[str], restarts: int
) -> None:
    left_at_work(store)
    life = come_back(store, after)
    assert list(life.last.meanwhile) == said
    assert life.tracker.get_state_report(TARGET)["restarts"] == restarts


def test_it_died_meanwhile(store: PersistenceManager) -> None:
    left_at_work(store)
    life = come_back(store, BEFORE, C.UNREACHABLE)
    assert [one.state for one in life.told] == [S.PROCESSING_REQUESTS, S.ERROR]


def test_a_start_that_began_before_the_first_look_does_not_lie_before_it(store: PersistenceManager) -> None:
    life = Life(store)
    life.tick(C.STOPPED, roles=frozenset())
    store.flush_all()
    again = Life(store, now=1_400.0)
    again.begins(P.PROCESS_UP)
    again.tick(C.STARTING)
    assert [(one.state, one.timestamp) for one in again.told] == [
        (S.TERMINATED, 1_401.0),
        (S.VALIDATING_ENVIRONMENT, 1_401.0),
    ]


def test_it_is_not_waited_for_for_ever(store: PersistenceManager) -> None:
    left_at_work(store)
    life = Life(store, now=1_400.0)
    for _ in range(9):
        life.tick(C.UNKNOWN)
    assert life.told == []
    life.tick(C.UNKNOWN, 5.0)
    assert [(one.state, one.condition) for one in life.told] == [
        (S.PROCESSING_REQUESTS, C.OK),
        (S.PROCESSING_REQUESTS, C.UNKNOWN),
    ]


def test_counts_facts_and_the_history_of_starts_survive(store: PersistenceManager) -> None:
    life = Life(store)
    life.tracker.track_startup({"model": "m"}, {"VLLM_X": "1"}, {"cpus": 2}, target=TARGET)
    for _ in range(2):
        life.start(seconds=4.0)
        life.tick(C.OK)
        life.tick(C.ENGINE_DEAD, exit_code=0)
    store.flush_all()
    again = Life(store, now=life.clock.now() + 60.0)
    report = again.tracker.get_state_report(TARGET)
    assert (report["state"], report["crashes"], report["failures_in_a_row"]) == ("critical_error", 2, 2)
    assert report["last_crash"]["exit_code"] == 0
    again.startup = {P.PROCESS_UP: again.clock.now()}
    again.tick(C.STARTING)
    assert again.told[-1].arguments == {"model": "m"}
    (timing,) = again.tracker.startup_timeline(TARGET, again.clock.now())
    assert timing.usual_seconds == 4.0
    again.tick(C.ENGINE_DEAD)
    assert again.last.state is S.UNRECOVERABLE
