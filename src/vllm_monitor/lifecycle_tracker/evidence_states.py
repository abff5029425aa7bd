"""From what a tick shows to the lifecycle state it means."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_monitor.lifecycle_tracker.transitions import STARTUP_STATES
from vllm_monitor.picture import LifeEvidence, StartupPhase
from vllm_monitor.records import Condition, LifecycleState

__all__ = ["IDLE_SECONDS", "PHASE_STATES", "state_of"]

IDLE_SECONDS = 60.0
"""PROCESSING_REQUESTS is left after this long without work, not after every burst."""

PHASE_STATES: Mapping[StartupPhase, LifecycleState] = {
    StartupPhase.PROCESS_UP: LifecycleState.VALIDATING_ENVIRONMENT,
    StartupPhase.CONFIG_PARSED: LifecycleState.LOADING_CONFIGURATIONS,
    StartupPhase.ENGINE_SPAWNED: LifecycleState.INITIALIZING,
    StartupPhase.WORKERS_SPAWNED: LifecycleState.SETTING_UP_WORKERS,
    StartupPhase.LOADING_WEIGHTS: LifecycleState.LOADING_MODEL,
    StartupPhase.ALLOCATING_KV_CACHE: LifecycleState.ALLOCATING_MEMORY,
    StartupPhase.WARMING_UP: LifecycleState.COMPILING_KERNELS,
    StartupPhase.ACCEPTING: LifecycleState.READY,
}

_STATES: Mapping[Condition, LifecycleState] = {
    Condition.OK: LifecycleState.PROCESSING_REQUESTS,
    Condition.IDLE: LifecycleState.SERVING,
    Condition.PAUSED: LifecycleState.PAUSED,
    Condition.STALLED: LifecycleState.DEGRADED,
    Condition.STARVED: LifecycleState.DEGRADED,
    Condition.SATURATED: LifecycleState.DEGRADED,
    Condition.API_FROZEN: LifecycleState.DEGRADED,
    Condition.ENGINE_DEAD: LifecycleState.CRITICAL_ERROR,
    Condition.WORKER_DEAD: LifecycleState.CRITICAL_ERROR,
    Condition.API_DEAD: LifecycleState.CRITICAL_ERROR,
    Condition.UNREACHABLE: LifecycleState.ERROR,
}


def state_of(evidence: LifeEvidence, state: LifecycleState | None, idle_seconds: float) -> LifecycleState:
    """The state that the evidence of a tick means.

    Args:
        evidence: Facts of the tick.
        state: The state before it.
        idle_seconds: How long there has been no work.
    """
    match evidence.condition:
        case Condition.UNKNOWN:
            came_up = state in STARTUP_STATES and StartupPhase.ACCEPTING in evidence.startup
            return LifecycleState.READY if came_up else state or LifecycleState.NOT_STARTED
        case Condition.STARTING:
            phases = [phase for phase in evidence.startup if phase is not StartupPhase.ACCEPTING]
            return PHASE_STATES[phases[-1]] if phases else LifecycleState.VALIDATING_ENVIRONMENT
        case Condition.STOPPED:
            return _ending(evidence)
        case Condition.IDLE if state is LifecycleState.PROCESSING_REQUESTS and idle_seconds < IDLE_SECONDS:
            return state
        case condition:
            return _STATES[condition]


def _ending(evidence: LifeEvidence) -> LifecycleState:
    """A requested shutdown: new requests are refused; then processes end, the API server's last; then none is left."""
    if evidence.roles is None:
        return LifecycleState.TERMINATED if evidence.port_closed else LifecycleState.SHUTTING_DOWN
    if "api" not in evidence.roles:
        return LifecycleState.CLEANUP if evidence.roles & {"engine", "worker"} else LifecycleState.TERMINATED
    return LifecycleState.SHUTTING_DOWN if "engine" in evidence.roles else LifecycleState.CLEANUP
