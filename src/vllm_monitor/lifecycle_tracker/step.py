"""What a checkpoint says beside the states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_monitor.records import Condition

__all__ = ["Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A change in a server's life, or a fact of it.

    Args:
        at: Unix seconds.
        condition: What is the matter.
        reason: Why, in words.
        values: Metric values of that moment.
        guardrails: Names of the guardrails that are violated.
        interventions: Names of the interventions under way.
        error_context: Facts of a failure.
        metadata: Further facts.
        checkpoint_id: Of its checkpoint; ``None`` for a new one.
    """

    at: float
    condition: Condition | None = None
    reason: str = ""
    values: Mapping[str, float] | None = None
    guardrails: Sequence[str] = ()
    interventions: Sequence[str] = ()
    error_context: dict[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    checkpoint_id: str | None = None
