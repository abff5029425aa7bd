"""The transition table: which lifecycle state may follow which, and what the step is called.

Observed servers skip states, since a look every second misses the short ones. :func:`path` says which states must
have been passed through unseen, so that a stored story never has a step that the table does not know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import cache

from vllm_monitor.errors import InvalidTransitionError
from vllm_monitor.records import FAILED_STATES, STARTUP_STATES, LifecycleState, StateTransition

__all__ = ["FAILED_STATES", "RUNNING_STATES", "STARTUP_STATES", "TRANSITIONS", "check_transition", "path"]

_S = LifecycleState
_T = StateTransition

RUNNING_STATES = (_S.READY, _S.SERVING, _S.PROCESSING_REQUESTS, _S.DEGRADED)
"""The port is open."""

_CHANGES = {_S.PAUSED: _T.PAUSE_RESUME, _S.RECONFIGURING: _T.RECONFIGURATION, _S.SCALING: _T.SCALING}
_ENDING_STATES = (_S.SHUTTING_DOWN, _S.CLEANUP, _S.TERMINATED)


def _table() -> dict[LifecycleState, dict[LifecycleState, StateTransition]]:
    table: dict[LifecycleState, dict[LifecycleState, StateTransition]] = {state: {} for state in _S}

    def allow(before: Iterable[LifecycleState], after: Iterable[LifecycleState], kind: StateTransition) -> None:
        for one in before:
            for other in after:
                if one is not other:
                    table[one].setdefault(other, kind)

    alive = (*RUNNING_STATES, *_CHANGES, _S.RECOVERING)
    # A start: from nothing, or once more after an end.
    allow((_S.NOT_STARTED, _S.TERMINATED), (*STARTUP_STATES, _S.READY), _T.STARTUP)
    for at, state in enumerate(STARTUP_STATES):
        allow((state,), (*STARTUP_STATES[at + 1 :], _S.READY), _T.STARTUP)
    # Workers that load their model by themselves are set up when all have done so.
    allow((_S.LOADING_MODEL, _S.ALLOCATING_MEMORY, _S.COMPILING_KERNELS), (_S.SETTING_UP_WORKERS,), _T.STARTUP)
    allow((_S.VALIDATING_ENVIRONMENT,), (_S.CHECKING_DEPENDENCIES,), _T.STARTUP)
    # At work.
    allow(RUNNING_STATES, (_S.SERVING, _S.PROCESSING_REQUESTS, _S.DEGRADED), _T.OPERATION)
    for state, kind in _CHANGES.items():
        allow(RUNNING_STATES, (state,), kind)
        allow((state,), (*RUNNING_STATES, *_CHANGES), kind)
    # The end.
    allow((_S.NOT_STARTED, *STARTUP_STATES, *alive, *FAILED_STATES), (_S.SHUTTING_DOWN, _S.TERMINATED), _T.SHUTDOWN)
    allow((*FAILED_STATES, _S.SHUTTING_DOWN), (_S.CLEANUP,), _T.SHUTDOWN)
    allow((_S.SHUTTING_DOWN, _S.CLEANUP), (_S.TERMINATED,), _T.SHUTDOWN)
    allow((_S.TERMINATED,), (_S.NOT_STARTED,), _T.SHUTDOWN)
    # Failure, and the way back.
    allow(
        (_S.NOT_STARTED, *STARTUP_STATES, *alive, *_ENDING_STATES, _S.ERROR, _S.CRITICAL_ERROR),
        FAILED_STATES,
        _T.EMERGENCY_STOP,
    )
    del table[_S.CRITICAL_ERROR][_S.ERROR]
    allow((*FAILED_STATES, _S.DEGRADED, *_CHANGES), (_S.RECOVERING,), _T.ERROR_RECOVERY)
    allow((*FAILED_STATES, _S.RECOVERING), (*STARTUP_STATES, *RUNNING_STATES), _T.ERROR_RECOVERY)
    return table


TRANSITIONS: Mapping[LifecycleState, Mapping[LifecycleState, StateTransition]] = _table()
"""State left to state entered to the name of the step."""


def check_transition(
    before: LifecycleState, after: LifecycleState, transition_type: StateTransition | None = None
) -> StateTransition:
    """The name of a step.

    Args:
        before: The state left.
        after: The state entered.
        transition_type: What the caller calls it; ``None`` takes the table's word.

    Raises:
        InvalidTransitionError: When the table has no such step, or calls it otherwise.
    """
    allowed = TRANSITIONS[before]
    known = allowed.get(after)
    if known is None:
        names = ", ".join(state.name for state in allowed)
        raise InvalidTransitionError(
            f"{before.name} cannot become {after.name}", hint=f"from {before.name} it can become: {names}"
        )
    if transition_type is not None and transition_type is not known:
        raise InvalidTransitionError(
            f"{before.name} to {after.name} is no {transition_type.name}", hint=f"it is a {known.name}"
        )
    return known


@cache
def path(before: LifecycleState, after: LifecycleState) -> tuple[LifecycleState, ...]:
    """The states that lead from one to another, the last included: the fewest that the table allows.

    Every state can be reached from every other; empty when they are the same. Of two ways of the same length the one
    through an ordinary end is taken rather than the one through a failure that nobody saw.
    """
    if before is after:
        return ()
    came_from: dict[LifecycleState, LifecycleState] = {before: before}
    waiting = deque([before])
    while after not in came_from:
        state = waiting.popleft()
        for neighbour in TRANSITIONS[state]:
            if neighbour not in came_from:
                came_from[neighbour] = state
                waiting.append(neighbour)
    steps = [after]
    while came_from[steps[-1]] is not before:
        steps.append(came_from[steps[-1]])
    return tuple(reversed(steps))
