"""What the inside told, through the step into the store: refusals counted, told at both ends, and never twice."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.collectors import ReadMark
from vllm_monitor.core import TargetPipeline, Tick
from vllm_monitor.lifecycle_tracker import INSIDE_KEY, LifecycleTracker, is_inside
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
    RequestSummary,
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

    def blind(self, *seen: Observation) -> Tick:
        """A tick in which the server shows nothing, so that its state is not known."""
        self.clock.advance(0.1)
        self.ticks.append(self.pipeline.step(self.clock.now(), list(seen)))
        return self.ticks[-1]

    def look(self) -> None:
        """As many ticks as it takes to know a state."""
        for _ in range(4):
            self.tick()

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


class Telling:
    """What the part inside one process tells, line by line, and a watch that may be ended and begun again."""

    def __init__(self, store: PersistenceManager, spool: str = "7-5-1-900000") -> None:
        self.store = store
        self.spool = spool
        self.line = 0
        self.told: list[EngineObservation] = []

    def tell(self, at: float, *kinds: str, rejected: int = 0) -> None:
        """A line of totals with what came before it, which is kept as a file would keep it."""
        notes = []
        for kind in kinds:
            notes.append(
                EngineNote(at, kind, {"lever": "pause", "for_seconds": 9.0}, f"{self.spool}:{self.line}:{kind}")
            )
            self.line += 1
        self.line += 1
        self.told.append(
            EngineObservation(
                target=TARGET,
                timestamp=at,
                layout=REJECTED,
                values=array("d", [rejected]),
                rejected={"gate_limit": rejected},
                notes=tuple(notes),
                spool=self.spool,
                line=self.line,
                requests=(RequestSummary(timestamp=at, target=TARGET, request_id=f"{self.spool}-{self.line}-0"),),
            )
        )

    def untold(self, watch: Watch) -> list[EngineObservation]:
        mark = watch.pipeline.inside_read.get(self.spool)
        return [one for one in self.told if mark is None or one.line > mark.line]

    def stored(self) -> dict[str, list[Any]]:
        assert self.store.flush_all()
        name = "vllm_monitor_engine_rejected_requests_total"
        return {
            "events": sorted(one.event_type for one in self.store.get_events(limit=None) if "inside" in one.event_type),
            "checkpoints": sorted(
                one.metadata[INSIDE_KEY]["kind"] for one in self.store.get_checkpoints(limit=None) if is_inside(one)
            ),
            "samples": sorted(one["timestamp"] for one in self.store.get_metrics(metric_name=name, limit=None)),
            "requests": sorted(one.timestamp for one in self.store.get_requests(limit=None)),
        }


ALL = {
    "events": ["inside_lever", "inside_lever", "inside_started"],
    "checkpoints": ["lever", "lever", "started"],
    "samples": [1_000.4, 1_000.556, 1_000.6],
    "requests": [1_000.4, 1_000.5559, 1_000.6],
}


def fill(telling: Telling) -> None:
    telling.tell(1_000.4, "started")
    telling.tell(1_000.555_9, "lever")
    telling.tell(1_000.6, "lever")


@pytest.mark.parametrize("ends_gracefully", [True, False])
@pytest.mark.parametrize("ticks", [0, 1, 5])
def test_a_watch_that_ends_soon_loses_nothing_and_nothing_comes_twice(
    store: PersistenceManager, ticks: int, ends_gracefully: bool
) -> None:
    telling = Telling(store)
    fill(telling)
    watch = Watch(store)
    assert telling.untold(watch) == telling.told
    watch.blind(*telling.told)
    for _ in range(ticks):
        watch.tick()
    if ends_gracefully:
        watch.pipeline.save_inside_progress()
    for now in (1_100.0, 1_200.0):
        again = Watch(store, now=now)
        news = telling.untold(again)
        assert len(news) == (0 if (ends_gracefully and ticks == 5) or now == 1_200.0 else 3)
        again.tick(*news)
        again.look()
        again.pipeline.save_inside_progress()
    assert telling.stored() == ALL


def test_what_waits_for_its_place_in_the_story_does_not_count_as_read(store: PersistenceManager) -> None:
    telling = Telling(store)
    fill(telling)
    watch = Watch(store)
    watch.blind(*telling.told)
    watch.pipeline.save_inside_progress()
    assert not Watch(store).pipeline.inside_read
    watch.look()
    watch.pipeline.save_inside_progress()
    assert Watch(store).pipeline.inside_read == {telling.spool: ReadMark(6)}


def test_each_process_has_a_mark_and_a_label_of_its_own(store: PersistenceManager) -> None:
    first, second = Telling(store), Telling(store, "8-6-1-900000")
    watch = Watch(store)
    watch.look()
    first.tell(1_000.1, "started")
    second.tell(1_000.2, "started")
    second.tell(1_000.3)
    watch.tick(*first.told, *(replace(one, api_server="1") for one in second.told))
    watch.pipeline.save_inside_progress()
    assert Watch(store).pipeline.inside_read == {first.spool: ReadMark(2), second.spool: ReadMark(3, "1")}


def test_a_mark_is_kept_only_when_what_it_accounts_for_is_stored(
    store: PersistenceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling = Telling(store)
    fill(telling)
    watch = Watch(store)
    watch.look()
    watch.tick(*telling.told)
    monkeypatch.setattr(store, "flush_all", lambda: False)
    watch.pipeline.save_inside_progress()
    assert not Watch(store).pipeline.inside_read


def test_what_was_refused_between_two_watches_is_told(store: PersistenceManager) -> None:
    telling = Telling(store)
    telling.tell(1_000.4, "started", rejected=7)
    watch = Watch(store)
    watch.look()
    watch.tick(*telling.told)
    watch.pipeline.save_inside_progress()
    telling.tell(1_050.0, rejected=9)
    again = Watch(store, now=1_100.0)
    again.tick(*telling.untold(again))
    again.look()
    assert again.events() == ["inside_rejected"]
    (told,) = [one for tick in again.ticks for one in tick.checkpoints if is_inside(one)]
    assert told.metadata[INSIDE_KEY]["requests"] == 2


def test_two_facts_of_one_moment_are_two(store: PersistenceManager) -> None:
    telling = Telling(store)
    telling.tell(1_000.4, "lever", "lever")
    watch = Watch(store)
    watch.look()
    watch.tick(*telling.told)
    assert watch.kinds() == ["lever", "lever"]


def test_what_is_told_without_a_store_is_told_all_the_same() -> None:
    watch = Watch(None)
    for _ in range(3):
        watch.told()
    watch.told(notes=(EngineNote(watch.clock.now(), "end", {}),))
    assert (watch.events(), watch.kinds()) == (["inside_end"], ["end"])
