"""What the inside told, through the step into the store: refusals counted, told at both ends, and never twice."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.core import TargetPipeline, Tick
from vllm_monitor.lifecycle_tracker import INSIDE_KEY, LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import (
    Condition,
    EngineNote,
    EngineObservation,
    Layout,
    LifecycleState,
    MetricKind,
    Observation,
    PageObservation,
    PauseObservation,
    Series,
)

TARGET = "http://one:8000"
PAGE = Layout([Series("vllm:num_requests_running"), Series("vllm:num_requests_waiting")])
REJECTED = Layout(
    [Series("vllm_monitor_engine_rejected_requests_total", (("reason", "gate_limit"),), MetricKind.COUNTER)]
)


class Watch:
    """A watch of a server whose part inside tells something each second; the server itself is idle."""

    def __init__(self, store: PersistenceManager | None, now: float = 1_000.0) -> None:
        self.clock = ManualClock(now)
        self.tracker = LifecycleTracker(store, clock=self.clock)
        self.pipeline = TargetPipeline(TARGET, tracker=self.tracker, store=store)
        if store is not None:
            self.tracker.resume(TARGET)
            self.pipeline.resume(now)
        self.ticks: list[Tick] = []

    def tick(self, *seen: Observation) -> Tick:
        self.clock.advance(1.0)
        now = self.clock.now()
        page = PageObservation(target=TARGET, timestamp=now, layout=PAGE, values=array("d", [0, 0]), status=200)
        self.ticks.append(self.pipeline.step(now, [page, *seen]))
        return self.ticks[-1]

    def told(
        self, rejected: int = 0, *, api_server: str = "0", notes: tuple[EngineNote, ...] = (), **further: Any
    ) -> Tick:
        return self.tick(
            EngineObservation(
                target=TARGET,
                timestamp=self.clock.now() + 1.0,
                api_server=api_server,
                layout=REJECTED,
                values=array("d", [rejected]),
                rejected={"gate_limit": rejected},
                notes=notes,
                **further,
            )
        )

    def events(self) -> list[str]:
        return [event.event_type for tick in self.ticks for event in tick.events if "inside" in event.event_type]

    def kinds(self) -> list[str]:
        found = [one.metadata.get(INSIDE_KEY) for tick in self.ticks for one in tick.checkpoints]
        return [str(facts["kind"]) for facts in found if facts is not None]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistenceManager]:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as opened:
        yield opened


def test_refusals_are_told_at_both_ends_and_counted_in_between(store: PersistenceManager) -> None:
    watch = Watch(store)
    for rejected in (0, 0, 5, 5, 5_000, 90_000):
        watch.told(rejected)
    assert watch.events() == ["inside_rejected"]
    for _ in range(29):
        watch.told(90_000)
    assert watch.kinds() == ["rejected"]
    watch.told(90_000)
    assert watch.kinds() == ["rejected", "rejected_over"]
    assert watch.events() == ["inside_rejected", "inside_rejected_over"]
    store.flush_all()
    began, over = [one for one in store.get_checkpoints()[::-1] if INSIDE_KEY in one.metadata]
    assert began.metrics == {"inside_rejected_requests": 5.0}
    assert over.metrics == {"inside_rejected_requests": 90_000.0}
    assert over.metadata[INSIDE_KEY]["reasons"] == {"gate_limit": 90_000}
    assert over.metadata[INSIDE_KEY]["seconds"] == 3.0
    (sample,) = store.latest(target=TARGET, metric_name="vllm_monitor_engine_rejected_requests_total")
    assert sample["value"] == 90_000


def test_what_was_refused_before_the_first_look_is_no_news() -> None:
    watch = Watch(None)
    watch.told(700)
    watch.told(700)
    assert watch.events() == []


def test_a_new_process_counts_from_nothing() -> None:
    watch = Watch(None)
    for rejected in (0, 9, 0, 2):
        watch.told(rejected)
    for _ in range(31):
        watch.told(2)
    (over,) = [one for tick in watch.ticks for one in tick.checkpoints if "rejected_over" in str(one.metadata)]
    assert over.metrics["inside_rejected_requests"] == 11.0


def test_an_episode_that_a_monitor_left_open_is_closed_by_the_next(store: PersistenceManager) -> None:
    watch = Watch(store)
    for rejected in (0, 0, 5):
        watch.told(rejected)
    store.flush_all()
    again = Watch(store, now=1_010.0)
    for _ in range(31):
        again.told(5)
    assert again.kinds() == ["rejected_over"]
    assert again.events() == ["inside_rejected_over"]


def test_a_pause_by_a_lever_is_a_pause_where_nothing_else_can_tell() -> None:
    watch = Watch(None)
    for _ in range(3):
        watch.told()
    pause = EngineNote(watch.clock.now(), "lever", {"lever": "pause", "mode": "keep", "for_seconds": 9.0, "done": True})
    paused = watch.told(is_paused=True, notes=(pause,))
    assert (paused.snapshot.condition, paused.snapshot.state) == (Condition.PAUSED, LifecycleState.PAUSED)
    assert watch.kinds() == ["lever"]
    resumed = watch.told(is_paused=False)
    assert resumed.snapshot.condition is Condition.IDLE


def test_what_the_server_says_of_a_pause_comes_first() -> None:
    watch = Watch(None)
    for _ in range(3):
        watch.told()
    tick = watch.tick(
        EngineObservation(target=TARGET, timestamp=watch.clock.now(), is_paused=True),
        PauseObservation(target=TARGET, timestamp=watch.clock.now(), is_paused=False),
    )
    assert tick.snapshot.condition is Condition.IDLE


def test_what_is_told_without_a_store_is_told_all_the_same() -> None:
    watch = Watch(None)
    for _ in range(3):
        watch.told()
    watch.told(notes=(EngineNote(watch.clock.now(), "end", {}),))
    assert (watch.events(), watch.kinds()) == (["inside_end"], ["end"])
