"""A request, from its arrival to the end of its answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["FinishReason", "Request"]


class FinishReason(StrEnum):
    """Why an answer ended, in the order in which the server prints them."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


@dataclass(slots=True, eq=False)
class Request:
    """One request and how far it has come. Times are seconds of simulated time.

    Args:
        prompt_tokens: Length of the prompt, at least 1.
        output_tokens: Tokens after which the answer ends, at least 1.
        max_tokens: What the client allowed; reached means finish reason ``length``.
        arrived_at: When the server got it.
        gives_up_at: When its client hangs up.
        prefix_group: Requests of one group share the beginning of their prompts; -1 for none.
        prefix_tokens: Length of the shared beginning.
    """

    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    arrived_at: float
    gives_up_at: float = math.inf
    prefix_group: int = -1
    prefix_tokens: int = 0

    generated: int = 0
    computed: int = 0
    blocks: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    queued_at: float = math.nan
    scheduled_at: float = math.nan
    first_token_at: float = math.nan
    last_token_at: float = math.nan
    finish_reason: FinishReason | None = None
    failure: str = ""
    abandoned: bool = False

    @property
    def pending_tokens(self) -> int:
        """Tokens known but not yet in the KV cache: 1 while decoding, more before that."""
        return self.prompt_tokens + self.generated - self.computed

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it."""
        return self.abandoned or self.finish_reason is not None or bool(self.failure)
