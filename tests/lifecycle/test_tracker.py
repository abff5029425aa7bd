"""States from evidence, and what their checkpoints say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.clock import ManualClock
from vllm_monitor.lifecycle_tracker import TRANSITIONS, Facts, LifecycleTracker, Observed
from vllm_monitor.lifecycle_tracker.tracker import FAILURES_TO_GIVE_UP, WELL_SECONDS
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.picture import LifeEvidence, ServerIdentity, StartupPhase
from vllm_monitor.records import Condition, LifecycleState, StateCheckpoint, StateTransition

C = Condition
P = StartupPhase
S = LifecycleState
TARGET = "http://one:8000"
ALL_ROLES = frozenset({"api", "engine", "worker"})


class Life:
    """One server whose evidence is made up, tick by tick."""

    def __init__(self, store: PersistenceManager | None = None, now: float = 1_000.0) -> None:
        self.clock = ManualClock(now)
        self.tracker = LifecycleTracker(store, clock=self.clock)
        self.startup: dict[P, float] = {}
        self.last = Observed(S.NOT_STARTED)
        self.told: list[StateCheckpoint] = []

    def tick(self, condition: C, seconds: float = 1.0, **evidence: object) -> S:
        self.clock.advance(seconds)
        shown = LifeEvidence(condition=condition, reason=f"because {condition}", startup=dict(self.startup))
        shown = replace(shown, **evidence)  # type: ignore[arg-type]
        self.last = self.tracker.observe(TARGET, self.clock.now(), shown, {"requests_running": 1.0})
        self.told += self.last.checkpoints
        return self.last.state

    def begins(self, phase: P) -> None:
        self.startup[phase] = self.clock.now()

    def start(self, *, seconds: float = 2.0, phases: tuple[P, ...] = tuple(P)[:-1]) -> None:
        self.startup = {}
        for phase in phases:
            self.begins(phase)
            self.tick(C.STARTING, seconds)
        self.begins(P.ACCEPTING)
        self.tick(C.UNKNOWN)

    def states(self) -> list[S]:
        return [checkpoint.state for checkpoint in self.told]


def test_a_start_passes_through_every_phase_with_its_own_time() -> None:
    life = Life()
    life.start(seconds=3.0)
    life.tick(C.IDLE)
    life.tick(C.OK)
    assert life.states() == [
        S.VALIDATING_ENVIRONMENT,
        S.LOADING_CONFIGURATIONS,
        S.INITIALIZING,
        S.SETTING_UP_WORKERS,
        S.LOADING_MODEL,
        S.ALLOCATING_MEMORY,
        S.COMPILING_KERNELS,
        S.READY,
        S.SERVING,
        S.PROCESSING_REQUESTS,
    ]
    gaps = {after.timestamp - before.timestamp for before, after in itertools.pairwise(life.told[:8])}
    assert gaps == {3.0}
    ready = life.told[7]
    assert set(ready.metadata["startup_seconds"]) == {phase.value for phase in P if phase is not P.ACCEPTING}
    assert all(checkpoint.transition_type is StateTransition.STARTUP for checkpoint in life.told[1:8])


def test_phases_that_began_between_two_ticks_are_all_told() -> None:
    life = Life()
    for phase in (P.PROCESS_UP, P.CONFIG_PARSED, P.ENGINE_SPAWNED):
        life.clock.advance(0.2)
        life.begins(phase)
    life.tick(C.STARTING)
    assert life.states() == [S.VALIDATING_ENVIRONMENT, S.LOADING_CONFIGURATIONS, S.INITIALIZING]
    assert [round(one.timestamp, 1) for one in life.told] == [1000.2, 1000.4, 1000.6]


def test_a_phase_that_takes_longer_than_usual_is_slow() -> None:
    life = Life()
    for _ in range(3):
        life.start(seconds=5.0)
        life.tick(C.IDLE)
        life.tick(C.STOPPED, roles=frozenset())
    life.startup = {}
    life.begins(P.PROCESS_UP)
    life.tick(C.STARTING)
    (timing,) = life.tracker.startup_timeline(TARGET, life.clock.now() + 8.0)
    assert (timing.usual_seconds, timing.is_slow, timing.is_over) == (5.0, False, False)
    (timing,) = life.tracker.startup_timeline(TARGET, life.clock.now() + 95.0)
    assert timing.is_slow
    assert str(timing) == "process up for 96 s (usually 5 s)"


@pytest.mark.parametrize(
    ("condition", "state"),
    [
        (C.OK, S.PROCESSING_REQUESTS),
        (C.IDLE, S.SERVING),
        (C.PAUSED, S.PAUSED),
        (C.STALLED, S.DEGRADED),
        (C.STARVED, S.DEGRADED),
        (C.SATURATED, S.DEGRADED),
        (C.API_FROZEN, S.DEGRADED),
        (C.ENGINE_DEAD, S.CRITICAL_ERROR),
        (C.WORKER_DEAD, S.CRITICAL_ERROR),
        (C.API_DEAD, S.CRITICAL_ERROR),
        (C.UNREACHABLE, S.ERROR),
        (C.STARTING, S.VALIDATING_ENVIRONMENT),
    ],
)
def test_a_server_may_be_met_in_any_condition(condition: C, state: S) -> None:
    life = Life()
    assert life.tick(C.UNKNOWN) is S.NOT_STARTED
    assert life.told == []
    assert life.tick(condition) is state
    assert [one.previous_state for one in life.told] == [None]


def test_pauses_between_bursts_are_no_news_but_a_minute_of_idleness_is() -> None:
    life = Life()
    life.tick(C.OK)
    for _ in range(5):
        assert life.tick(C.IDLE, 30.0) is S.PROCESSING_REQUESTS
        life.tick(C.OK)
    assert len(life.told) == 1
    life.tick(C.IDLE, 30.0)
    assert life.tick(C.IDLE, 31.0) is S.SERVING
    assert life.states() == [S.PROCESSING_REQUESTS, S.SERVING]


def test_a_shutdown_on_request() -> None:
    life = Life()
    life.tick(C.OK, roles=ALL_ROLES)
    assert life.tick(C.STOPPED, roles=ALL_ROLES) is S.SHUTTING_DOWN
    assert life.tick(C.STOPPED, roles=frozenset({"api"})) is S.CLEANUP
    assert life.tick(C.STOPPED, roles=frozenset()) is S.TERMINATED
    assert {one.transition_type for one in life.told[1:]} == {StateTransition.SHUTDOWN}


def test_a_shutdown_of_a_server_elsewhere() -> None:
    life = Life()
    life.tick(C.OK)
    assert life.tick(C.STOPPED) is S.SHUTTING_DOWN
    assert life.tick(C.STOPPED, port_closed=True) is S.TERMINATED


def test_the_signature_of_a_crash_is_completed_as_it_becomes_known() -> None:
    life = Life()
    life.tick(C.OK, roles=ALL_ROLES)
    assert life.tick(C.ENGINE_DEAD) is S.CRITICAL_ERROR
    life.tick(C.ENGINE_DEAD)
    life.tick(C.ENGINE_DEAD, first_fatal="engine core exited unexpectedly")
    life.tick(C.ENGINE_DEAD, first_fatal="engine core exited unexpectedly", exit_code=0)
    life.tick(C.ENGINE_DEAD, first_fatal="engine core exited unexpectedly", exit_code=0)
    assert life.states() == [S.PROCESSING_REQUESTS, S.CRITICAL_ERROR, S.CRITICAL_ERROR, S.CRITICAL_ERROR]
    assert life.told[-1].error_context == {
        "condition": "engine_dead",
        "reason": "because engine_dead",
        "state_before": "processing_requests",
        "first_fatal_line": "engine core exited unexpectedly",
        "exit_code": 0,
    }
    report = life.tracker.get_state_report(TARGET)
    assert (report["crashes"], report["last_crash"]["exit_code"]) == (1, 0)


def test_the_way_back_from_a_crash() -> None:
    life = Life()
    identity = ServerIdentity(start_time=1.0)
    life.tick(C.OK, identity=identity)
    life.tick(C.ENGINE_DEAD, identity=identity)
    life.start()
    life.tick(C.OK, identity=ServerIdentity(start_time=2.0))
    assert life.states()[1:4] == [S.CRITICAL_ERROR, S.RECOVERING, S.VALIDATING_ENVIRONMENT]
    assert life.states()[-2:] == [S.READY, S.PROCESSING_REQUESTS]
    assert life.told[2].reason == "it is being started again after engine_dead"
    assert life.tracker.get_state_report(TARGET)["restarts"] == 1


def test_one_failure_after_the_other_is_unrecoverable_until_it_has_run_for_a_minute() -> None:
    life = Life()
    for _ in range(FAILURES_TO_GIVE_UP):
        life.start(phases=(P.PROCESS_UP, P.CONFIG_PARSED))
        assert life.last.state is S.READY
        life.tick(C.OK)
        life.tick(C.ENGINE_DEAD)
    assert life.states()[-1] is S.UNRECOVERABLE
    life.tick(C.ENGINE_DEAD, exit_code=0)
    assert life.states()[-1] is S.UNRECOVERABLE
    life.start()
    life.tick(C.OK)
    life.tick(C.OK, WELL_SECONDS)
    life.tick(C.ENGINE_DEAD)
    assert life.states()[-1] is S.CRITICAL_ERROR


def test_facts_guardrails_and_interventions_are_in_the_checkpoint() -> None:
    tracker = LifecycleTracker()
    tracker.set_facts(TARGET, Facts({"model": "m"}, {"VLLM_X": "1"}, {"cpus": 2}))
    evidence = LifeEvidence(condition=C.STALLED, reason="stuck")
    observed = tracker.observe(
        TARGET, 5.0, evidence, {"a": 1.0}, guardrails=["engine_stall"], interventions=["restart"]
    )
    (checkpoint,) = observed.checkpoints
    assert checkpoint.arguments == {"model": "m"}
    assert checkpoint.environment == {"VLLM_X": "1"}
    assert checkpoint.hardware_state == {"cpus": 2}
    assert checkpoint.guardrails_enforced == ["engine_stall"]
    assert checkpoint.interventions_triggered == ["restart"]
    assert checkpoint.metrics == {"a": 1.0}
    assert (checkpoint.condition, checkpoint.reason, checkpoint.target) == (C.STALLED, "stuck", TARGET)


def test_several_servers_are_followed_apart() -> None:
    tracker = LifecycleTracker()
    tracker.observe("a", 1.0, LifeEvidence(condition=C.OK), {})
    tracker.observe("b", 1.0, LifeEvidence(condition=C.PAUSED), {})
    states = {name: one["state"] for name, one in tracker.get_state_report()["targets"].items()}
    assert states == {"a": "processing_requests", "b": "paused"}


_EVIDENCE = st.builds(
    LifeEvidence,
    condition=st.sampled_from(C),
    roles=st.none() | st.frozensets(st.sampled_from(sorted(ALL_ROLES))),
    port_closed=st.booleans(),
    exit_code=st.none() | st.integers(-15, 2),
    first_fatal=st.sampled_from(["", "died"]),
    startup=st.dictionaries(st.sampled_from(P), st.floats(0, 100)).map(
        lambda marks: dict(zip([p for p in P if p in marks], sorted(marks.values()), strict=True))
    ),
    identity=st.builds(ServerIdentity, start_time=st.none() | st.floats(0, 3)),
)


@given(st.lists(st.tuples(_EVIDENCE, st.floats(-5, 100)), max_size=40))
def test_whatever_is_seen_the_story_has_steps_of_the_table_alone(ticks: list[tuple[LifeEvidence, float]]) -> None:
    tracker = LifecycleTracker()
    told: list[StateCheckpoint] = []
    now = 50.0
    for evidence, seconds in ticks:
        now += seconds
        observed = tracker.observe(TARGET, now, evidence, {})
        told += observed.checkpoints
        assert not told or told[-1].state is observed.state
    for before, after in itertools.pairwise(told):
        assert after.previous_state is before.state
        assert after.state is before.state or after.state in TRANSITIONS[before.state]


# --- direct calls --------------------------------------------------------------------------------------


def test_told_from_start_to_end(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        tracker = LifecycleTracker(store, clock=ManualClock(2_000.0))
        tracker.track_startup(
            {"model": "m", "api_key": "sk-secret-1234567890"}, {"HF_TOKEN": "hf_secret"}, {"gpus": ["H100"]}
        )
        tracker.transition_to_state(S.LOADING_MODEL, StateTransition.STARTUP, {"shards": 2})
        tracker.transition_to_state(S.READY, StateTransition.STARTUP)
        tracker.transition_to_state(S.SERVING)
        tracker.track_shutdown(exit_code=0)
        stored = store.get_checkpoints()
    assert [one.state for one in stored] == [
        S.TERMINATED,
        S.SHUTTING_DOWN,
        S.SERVING,
        S.READY,
        S.LOADING_MODEL,
        S.VALIDATING_ENVIRONMENT,
    ]
    assert stored[4].metadata["context"] == {"shards": 2}
    assert stored[0].metadata["shutdown"] == {"reason": "normal", "exit_code": 0}
    assert stored[5].hardware_state == {"gpus": ["H100"]}
    assert "secret" not in repr(stored)


def test_a_crash_is_one_whatever_its_exit_code() -> None:
    tracker = LifecycleTracker(clock=ManualClock(2_000.0))
    tracker.track_startup({})
    tracker.transition_to_state(S.READY)
    checkpoint = tracker.track_shutdown("the engine died", exit_code=0, is_crash=True)
    assert checkpoint.state is S.CRITICAL_ERROR
    assert checkpoint.error_context == {"reason": "the engine died", "exit_code": 0}
    assert tracker.track_startup({}).state is S.VALIDATING_ENVIRONMENT


def test_starting_again_what_still_ran_tells_the_end_that_nobody_saw() -> None:
    tracker = LifecycleTracker(clock=ManualClock(2_000.0))
    tracker.transition_to_state(S.READY)
    tracker.track_startup({})
    tracker.track_startup({})
    recent = [one["state"] for one in tracker.get_state_report("")["recent"]]
    assert recent == ["ready", "terminated", "validating_environment", "terminated", "validating_environment"]
