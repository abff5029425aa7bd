"""Summaries of single requests, as the inside of a server sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RequestSummary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSummary:
    """How one request went; never its text. Figures that are not known are ``None``.

    Args:
        timestamp: Unix seconds at which it arrived.
        model: Name of the served model.
        finish_reason: ``stop``, ``length``, ``abort``, ``error`` ... as the server said.
        prompt_tokens: Tokens of the prompt.
        output_tokens: Tokens generated.
        cached_tokens: Prompt tokens found in the prefix cache.
        queue_seconds: From arrival to the first time it was scheduled.
        time_to_first_token_seconds: From arrival to the first token.
        inter_token_seconds: Mean time between two tokens.
        longest_gap_seconds: Longest time between two tokens.
        duration_seconds: From arrival to the end.
        preemptions: How often it lost its place in the KV cache.
        error: What went wrong; empty when nothing did.
        met_objective: Whether it finished well and within the objectives.
        engine: Index of the engine that served it.
        target: The server's URL.
        metadata: Anything else.
        request_id: Unique across stores; filled in when saved.
    """

    timestamp: float
    model: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    time_to_first_token_seconds: float | None = None
    inter_token_seconds: float | None = None
    longest_gap_seconds: float | None = None
    duration_seconds: float | None = None
    preemptions: int | None = None
    error: str = ""
    met_objective: bool | None = None
    engine: int | None = None
    target: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None
