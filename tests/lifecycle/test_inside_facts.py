"""What the inside tells, in the chain of checkpoints: beside the states, and never against them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lifecycle.test_tracker import TARGET, C, Life, P, S

from vllm_monitor.lifecycle_tracker import INSIDE_KEY
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.picture import ServerIdentity
from vllm_monitor.records import EngineNote, StateCheckpoint

CONFIG = {"max_num_seqs": 8, "dtype": "bfloat16"}
START = {"process_started_at": 970.0, "engine_client_at": 1_000.0}
KV = {"num_gpu_blocks": 512, "block_size": 16, "kv_capacity_tokens": 8192}


def started(at: float, fingerprint: str = "ab" * 32, **config: Any) -> EngineNote:
    facts = {"config": {**CONFIG, **config}, "config_fingerprint": fingerprint, **START, "api_server": "0"}
    return EngineNote(at, "started", facts)


def tell(life: Life, *notes: EngineNote) -> list[StateCheckpoint]:
    told = list(life.tracker.note_inside(TARGET, life.clock.now(), notes))
    life.told += told
    return told


def words(checkpoint: StateCheckpoint) -> str:
    return str(checkpoint.metadata[INSIDE_KEY]["words"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistenceManager]:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as opened:
        yield opened


def test_a_start_has_its_configuration_phases_and_kv_cache() -> None:
    life = Life()
    life.tick(C.STARTING)
    first, second = tell(
        life,
        started(life.clock.now()),
        EngineNote(life.clock.now(), "engine_initialized", {**KV, **START, "engine_initialized_at": 1_000.5}),
    )
    assert (first.state, first.previous_state, first.condition) == (S.VALIDATING_ENVIRONMENT,) * 2 + (C.STARTING,)
    assert first.transition_type is None
    assert first.metadata["engine"] == {"config": CONFIG, "config_fingerprint": "ab" * 32}
    assert first.metadata[INSIDE_KEY]["phase_seconds"] == {"engine_client": 30.0, "startup": 30.0}
    assert words(first) == "inside: the engine is up 30.0 s after its process began; configuration abababababab"
    assert second.metrics == {
        "inside_engine_client_seconds": 30.0,
        "inside_engine_initialized_seconds": 0.5,
        "inside_startup_seconds": 30.5,
        "inside_kv_capacity_tokens": 8192.0,
    }
    assert words(second) == "inside: the engine is ready; its KV cache holds 8192 tokens (512 blocks of 16)"
    life.startup = {P.PROCESS_UP: 1_001.0, P.ACCEPTING: 1_001.5}
    life.tick(C.IDLE)
    assert life.told[-1].state is S.SERVING, "the outside view goes on as if nothing had been told"
    assert life.told[-1].metadata["engine"] == {"config": CONFIG, "config_fingerprint": "ab" * 32, **KV}
    for before, after in itertools.pairwise(life.told):
        assert (after.previous_state, before.timestamp <= after.timestamp) == (before.state, True)


def test_a_flag_that_was_changed_is_named(store: PersistenceManager) -> None:
    life = Life(store)
    life.tick(C.IDLE)
    tell(life, started(1_000.0))
    (again,) = tell(life, started(1_001.0))
    assert "config_changed" not in again.metadata[INSIDE_KEY]
    store.flush_all()
    later = Life(store, now=5_000.0)
    later.tick(C.IDLE, identity=ServerIdentity(start_time=1.0))
    (changed,) = tell(later, started(4_990.0, "cd" * 32, max_num_seqs=4, seed=0))
    assert changed.metadata[INSIDE_KEY]["config_changed"] == ["max_num_seqs", "seed"]
    assert words(changed).endswith(
        "configuration cdcdcdcdcdcd, of which changed since the last time: max_num_seqs, seed"
    )


def test_they_wait_until_a_state_is_known() -> None:
    life = Life()
    life.tick(C.UNKNOWN)
    assert tell(life, started(1_000.0)) == []
    life.tick(C.IDLE)
    (told,) = tell(life)
    assert (told.state, told.timestamp) == (S.SERVING, life.clock.now()), "not before what is in the story already"
    assert told.metadata[INSIDE_KEY]["at"] == 1_000.0


def test_a_restart_of_the_monitor_tells_nothing_twice(store: PersistenceManager) -> None:
    life = Life(store)
    life.tick(C.IDLE)
    slept = EngineNote(life.clock.now(), "sleep", {"is_asleep": True, "level": 1})
    tell(life, started(1_000.0), slept)
    store.flush_all()
    again = Life(store, now=1_100.0)
    assert tell(again, started(1_000.0), slept) == [], "it is not known yet what happened meanwhile"
    again.tick(C.IDLE, identity=ServerIdentity(start_time=1.0))
    awake = EngineNote(1_050.0, "sleep", {"is_asleep": False, "level": 0})
    (told,) = tell(again, awake)
    assert words(told) == "inside: the engine is awake"
    store.flush_all()
    assert sum(INSIDE_KEY in one.metadata for one in store.get_checkpoints(limit=None)) == 3
    chain = store.get_checkpoints(limit=None)[::-1]
    assert [one.previous_state for one in chain[1:]] == [one.state for one in chain[:-1]]


def test_what_there_was_no_room_for_does_not_count_as_told() -> None:
    life = Life()
    tell(life, *(EngineNote(1_000.0, "end", {"n": number}, f"7-5-1:{number}:end") for number in range(10_001)))
    life.tick(C.IDLE)
    assert len(tell(life)) == 10_000
    assert life.tracker.waits_inside(TARGET)
    again = Life()
    tell(again, EngineNote(1_000.0, "end", {}, "7-5-1:1:end"))
    assert again.tracker.waits_inside(TARGET)
    again.tick(C.IDLE)
    assert len(tell(again)) == 1
    assert not again.tracker.waits_inside(TARGET)


def test_what_is_learned_late_says_so() -> None:
    life = Life()
    life.tick(C.IDLE)
    life.clock.advance(7_200.0)
    (told,) = tell(life, EngineNote(1_000.0, "end", {}))
    assert (told.timestamp, told.metadata[INSIDE_KEY]["at"]) == (1_001.0, 1_000.0)
    (told,) = tell(life, EngineNote(900.0, "end", {}))
    assert words(told) == "inside: the server's process ends (101 s ago)"


def test_the_verdict_stays_what_it_was() -> None:
    life = Life()
    life.tick(C.SATURATED)
    judged = life.told[-1]
    life.clock.advance(5.0)
    (told,) = tell(life, EngineNote(life.clock.now(), "rejected", {"requests": 3, "reasons": {"gate_limit": 3}}))
    assert (told.state, told.condition, told.reason) == (S.DEGRADED, C.SATURATED, judged.reason)
    assert told.metadata["condition_since"] == judged.timestamp
    life.tick(C.SATURATED)
    assert life.told[-1] is told


PAUSED = {"lever": "pause", "mode": "keep", "for_seconds": 60.0, "done": False}
RESUMED = {"lever": "resume", "by_itself": True, "done": True}
REFUSED = {"requests": 5, "reasons": {"gate_limit": 2, "x": 3}}
READY = {**START, "application_ready_at": 1_002.0}


@pytest.mark.parametrize(
    ("kind", "facts", "said"),
    [
        ("sleep", {"is_asleep": True, "level": 2}, "the engine sleeps (level 2)"),
        ("sleep", {}, "the engine sleeps"),
        ("lever", RESUMED, "a lever has resumed the engine at the end of its time"),
        ("lever", PAUSED, "a lever has paused the engine (mode keep, for 60.0 s), which was not done"),
        ("rejected_over", REFUSED, "no request is refused any more; 5 were (gate_limit 2, x 3)"),
        ("application_ready", READY, "the application is ready 32.0 s after its process began"),
        ("application_ready", {**READY, "application_ready_at": 1.0}, "the application is ready"),
        ("end", {}, "the server's process ends"),
    ],
)
def test_words(kind: str, facts: dict[str, Any], said: str) -> None:
    life = Life()
    life.tick(C.IDLE)
    (told,) = tell(life, EngineNote(life.clock.now(), kind, facts))
    assert words(told) == f"inside: {said}"


KINDS = (
    "started",
    "engine_initialized",
    "application_ready",
    "sleep",
    "lever",
    "rejected",
    "rejected_over",
    "end",
    "x",
)
NAMES = ("config", "kv_capacity_tokens", "requests", "reasons", "lever", "level", "engine_client_at", "config_changed")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = SCALARS | st.lists(st.integers()) | st.dictionaries(st.text(), st.text())


@given(kind=st.sampled_from(KINDS), facts=st.dictionaries(st.sampled_from(NAMES), VALUES), at=st.floats())
def test_no_fact_makes_it_raise(kind: str, facts: dict[str, Any], at: float) -> None:
    life = Life()
    life.tick(C.IDLE)
    for told in tell(life, EngineNote(at, kind, facts)):
        assert told.timestamp == life.clock.now()
