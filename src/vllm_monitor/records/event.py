"""Events: what happened, in words, for the screen and the audit trail."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Event", "Severity"]


class Severity(StrEnum):
    """How loudly to say it."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a target or to the monitor itself.

    Args:
        timestamp: Unix seconds.
        event_type: A stable name in snake case (``monitor_started``, ``condition_changed`` ...).
        message: One sentence for a person.
        severity: How loudly to say it.
        target: The server's URL; empty for the monitor itself.
        data: The facts behind the sentence.
        metadata: Anything else.
        event_id: Unique across stores; filled in when saved.
    """

    timestamp: float
    event_type: str
    message: str
    severity: Severity = Severity.INFO
    target: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    event_id: str | None = None
