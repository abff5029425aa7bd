"""The table of lifecycle states: complete, refuses what it does not know, and every walk through it is legal."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import InvalidTransitionError
from vllm_monitor.lifecycle_tracker import TRANSITIONS, LifecycleTracker, check_transition
from vllm_monitor.lifecycle_tracker.transitions import path
from vllm_monitor.records import LifecycleState, StateTransition

S = LifecycleState
T = StateTransition
SEEN_ON_A_REAL_START = [
    S.VALIDATING_ENVIRONMENT,
    S.LOADING_CONFIGURATIONS,
    S.INITIALIZING,
    S.SETTING_UP_WORKERS,
    S.LOADING_MODEL,
    S.ALLOCATING_MEMORY,
    S.COMPILING_KERNELS,
    S.READY,
]


def test_every_state_is_left_and_entered() -> None:
    assert set(TRANSITIONS) == set(S)
    assert {after for row in TRANSITIONS.values() for after in row} == set(S)
    assert all(TRANSITIONS.values())
    assert {kind for row in TRANSITIONS.values() for kind in row.values()} == set(T)


def test_no_state_follows_itself() -> None:
    assert not [state for state in S if state in TRANSITIONS[state]]


@pytest.mark.parametrize(("before", "after"), [*itertools.pairwise([S.NOT_STARTED, *SEEN_ON_A_REAL_START])])
def test_the_order_of_a_real_start(before: S, after: S) -> None:
    assert check_transition(before, after) is T.STARTUP


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (S.COMPILING_KERNELS, S.SETTING_UP_WORKERS, T.STARTUP),
        (S.READY, S.SERVING, T.OPERATION),
        (S.SERVING, S.PROCESSING_REQUESTS, T.OPERATION),
        (S.PROCESSING_REQUESTS, S.DEGRADED, T.OPERATION),
        (S.DEGRADED, S.SERVING, T.OPERATION),
        (S.PROCESSING_REQUESTS, S.PAUSED, T.PAUSE_RESUME),
        (S.PAUSED, S.PROCESSING_REQUESTS, T.PAUSE_RESUME),
        (S.SERVING, S.RECONFIGURING, T.RECONFIGURATION),
        (S.SERVING, S.SCALING, T.SCALING),
        (S.PROCESSING_REQUESTS, S.CRITICAL_ERROR, T.EMERGENCY_STOP),
        (S.CRITICAL_ERROR, S.RECOVERING, T.ERROR_RECOVERY),
        (S.RECOVERING, S.VALIDATING_ENVIRONMENT, T.ERROR_RECOVERY),
        (S.CRITICAL_ERROR, S.UNRECOVERABLE, T.EMERGENCY_STOP),
        (S.SERVING, S.SHUTTING_DOWN, T.SHUTDOWN),
        (S.SHUTTING_DOWN, S.CLEANUP, T.SHUTDOWN),
        (S.CLEANUP, S.TERMINATED, T.SHUTDOWN),
        (S.TERMINATED, S.VALIDATING_ENVIRONMENT, T.STARTUP),
    ],
)
def test_what_a_step_is_called(before: S, after: S, kind: T) -> None:
    assert check_transition(before, after, kind) is kind


def test_what_the_table_does_not_know_is_refused_and_the_allowed_ones_named() -> None:
    with pytest.raises(InvalidTransitionError, match="TERMINATED cannot become PROCESSING_REQUESTS") as refused:
        check_transition(S.TERMINATED, S.PROCESSING_REQUESTS)
    for allowed in TRANSITIONS[S.TERMINATED]:
        assert allowed.name in refused.value.hint
    assert isinstance(refused.value, ValueError)
    with pytest.raises(InvalidTransitionError, match="SERVING to PAUSED is no SCALING") as refused:
        check_transition(S.SERVING, S.PAUSED, T.SCALING)
    assert "PAUSE_RESUME" in refused.value.hint


@given(st.sampled_from(S), st.sampled_from(S))
def test_a_path_between_any_two_states_has_steps_of_the_table_alone(before: S, after: S) -> None:
    steps = path(before, after)
    assert (steps == ()) is (before is after)
    for one, other in itertools.pairwise([before, *steps]):
        assert other in TRANSITIONS[one]
    assert [before, *steps][-1] is after


@given(st.lists(st.tuples(st.sampled_from(S), st.none() | st.sampled_from(T)), max_size=60))
def test_a_random_walk_takes_legal_steps_and_no_others(walk: list[tuple[S, T | None]]) -> None:
    tracker = LifecycleTracker(clock=ManualClock(1_000.0))
    state: S | None = None
    for wanted, kind in walk:
        before = S.NOT_STARTED if state is None else state
        known = TRANSITIONS[before].get(wanted)
        first = state is None and wanted is S.NOT_STARTED
        if first or (known is not None and kind in (None, known)):
            checkpoint = tracker.transition_to_state(wanted, kind)
            assert (checkpoint.previous_state, checkpoint.state) == (state, wanted)
            assert checkpoint.transition_type is (None if state is None else known)
            state = wanted
        else:
            with pytest.raises(InvalidTransitionError):
                tracker.transition_to_state(wanted, kind)
        assert tracker.get_state_report("")["state"] == (state or S.NOT_STARTED).value


@pytest.mark.parametrize("state", S)
def test_every_state_is_reached(state: S) -> None:
    tracker = LifecycleTracker(clock=ManualClock(1_000.0))
    tracker.transition_to_state(S.NOT_STARTED)
    for step in path(S.NOT_STARTED, state):
        tracker.transition_to_state(step)
    assert tracker.get_state_report("")["state"] == state.value
