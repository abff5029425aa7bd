"""Happy paths: known-good executions that later ones are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_monitor.records.lifecycle import LifecycleState, StateCheckpoint

__all__ = ["HappyPath"]


@dataclass(frozen=True, slots=True)
class HappyPath:
    """A recorded execution that went well.

    Args:
        path_id: Unique across stores; saving the same id again updates it and keeps the counts.
        name: For a person.
        checkpoints: The states it went through, oldest first.
        metrics_profile: Canonical metric name to its figures (mean, standard deviation, quantiles), by load level.
        guardrails: Names of the guardrails that were active.
        success_count: Later runs that followed it and went well.
        failure_count: Later runs that followed it and did not.
        timestamp: Unix seconds at which it was first saved; filled in when saved.
        updated_at: Unix seconds at which it was last saved or counted.
        target: The server's URL; empty for a path of all servers.
        metadata: Anything else.
    """

    path_id: str
    name: str
    checkpoints: list[StateCheckpoint]
    metrics_profile: dict[str, Any]
    guardrails: list[str]
    success_count: int = 0
    failure_count: int = 0
    timestamp: float = 0.0
    updated_at: float = 0.0
    target: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def start_state(self) -> LifecycleState | None:
        """The first state of the path, ``None`` when it has none."""
        return self.checkpoints[0].state if self.checkpoints else None

    @property
    def end_state(self) -> LifecycleState | None:
        """The last state of the path."""
        return self.checkpoints[-1].state if self.checkpoints else None
