"""Alerts: guardrails that were violated, from the first doubt to the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vllm_monitor.records.event import Severity

__all__ = ["Alert", "AlertState"]


class AlertState(StrEnum):
    """Where an alert stands: the condition is not met, met for too short a time, met, or met no longer."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert of one guardrail on one target; saved again, under the same id, whenever its state changes.

    Args:
        timestamp: Unix seconds at which the condition was first met.
        name: The guardrail.
        state: Where it stands.
        severity: How loudly to say it.
        message: One sentence for a person.
        condition: The guardrail's condition, as text.
        labels: What distinguishes it from other alerts of the same guardrail.
        values: The figures that met the condition.
        fired_at: Unix seconds at which it began to fire.
        resolved_at: Unix seconds at which it ended.
        intervention: What the guardrail asks for.
        checkpoint_id: The newest checkpoint when it fired.
        target: The server's URL; empty for the monitor itself.
        metadata: Anything else.
        alert_id: Unique across stores; filled in when saved.
    """

    timestamp: float
    name: str
    state: AlertState
    severity: Severity = Severity.WARNING
    message: str = ""
    condition: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    fired_at: float | None = None
    resolved_at: float | None = None
    intervention: str | None = None
    checkpoint_id: str | None = None
    target: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    alert_id: str | None = None
