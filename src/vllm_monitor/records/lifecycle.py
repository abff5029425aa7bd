"""States, conditions and checkpoints of a server's life."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["FAILED_STATES", "STARTUP_STATES", "Condition", "LifecycleState", "StateCheckpoint", "StateTransition"]


class LifecycleState(StrEnum):
    """Where a server stands between not started and terminated. The value is the name in lower case."""

    NOT_STARTED = "not_started"
    VALIDATING_ENVIRONMENT = "validating_environment"
    CHECKING_DEPENDENCIES = "checking_dependencies"
    LOADING_CONFIGURATIONS = "loading_configurations"
    INITIALIZING = "initializing"
    LOADING_MODEL = "loading_model"
    ALLOCATING_MEMORY = "allocating_memory"
    COMPILING_KERNELS = "compiling_kernels"
    SETTING_UP_WORKERS = "setting_up_workers"
    READY = "ready"
    SERVING = "serving"
    PROCESSING_REQUESTS = "processing_requests"
    DEGRADED = "degraded"
    PAUSED = "paused"
    RECONFIGURING = "reconfiguring"
    SCALING = "scaling"
    RECOVERING = "recovering"
    SHUTTING_DOWN = "shutting_down"
    CLEANUP = "cleanup"
    TERMINATED = "terminated"
    ERROR = "error"
    CRITICAL_ERROR = "critical_error"
    UNRECOVERABLE = "unrecoverable"


STARTUP_STATES = (
    LifecycleState.CHECKING_DEPENDENCIES,
    LifecycleState.VALIDATING_ENVIRONMENT,
    LifecycleState.LOADING_CONFIGURATIONS,
    LifecycleState.INITIALIZING,
    LifecycleState.SETTING_UP_WORKERS,
    LifecycleState.LOADING_MODEL,
    LifecycleState.ALLOCATING_MEMORY,
    LifecycleState.COMPILING_KERNELS,
)
"""In the order in which a vLLM server passes through them; any of them may be missed or left out."""
FAILED_STATES = (LifecycleState.ERROR, LifecycleState.CRITICAL_ERROR, LifecycleState.UNRECOVERABLE)
"""Nobody is served, and nobody asked for that. Each may become one of those behind it."""


class StateTransition(StrEnum):
    """Why a state was left for another."""

    STARTUP = "startup"
    SHUTDOWN = "shutdown"
    ERROR_RECOVERY = "error_recovery"
    RECONFIGURATION = "reconfiguration"
    SCALING = "scaling"
    PAUSE_RESUME = "pause_resume"
    EMERGENCY_STOP = "emergency_stop"
    OPERATION = "operation"


class Condition(StrEnum):
    """What is the matter with a server right now, beside its lifecycle state."""

    OK = "ok"
    IDLE = "idle"
    STARTING = "starting"
    STOPPED = "stopped"
    PAUSED = "paused"
    STALLED = "stalled"
    STARVED = "starved"
    SATURATED = "saturated"
    ENGINE_DEAD = "engine_dead"
    WORKER_DEAD = "worker_dead"
    API_DEAD = "api_dead"
    API_FROZEN = "api_frozen"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class StateCheckpoint:
    """What was known of a server when it entered a state.

    Args:
        timestamp: Unix seconds of the transition.
        state: The state entered.
        previous_state: The state left, ``None`` for the first of a target.
        transition_type: Why; ``None`` when not known.
        arguments: The server's arguments (redacted when stored).
        environment: The server's environment (redacted when stored).
        hardware_state: Facts of host and accelerator.
        error_context: What was wrong, for transitions into an error.
        interventions_triggered: Names of interventions that this transition set off.
        guardrails_enforced: Names of guardrails that were violated.
        metrics: Canonical metric values at that moment.
        metadata: Anything else.
        checkpoint_id: Unique across stores; filled in when saved.
        target: The server's URL.
        condition: What was the matter, beside the state.
        reason: The judgement in a sentence.
    """

    timestamp: float
    state: LifecycleState
    previous_state: LifecycleState | None
    transition_type: StateTransition | None
    arguments: dict[str, Any]
    environment: dict[str, str]
    hardware_state: dict[str, Any]
    error_context: dict[str, Any] | None = None
    interventions_triggered: list[str] = field(default_factory=list)
    guardrails_enforced: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    checkpoint_id: str | None = None
    target: str = ""
    condition: Condition | None = None
    reason: str = ""
