"""What really happened in a recording, for those who score; a monitor never sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RecordedTruth", "TruthReader"]


@dataclass(frozen=True, slots=True)
class RecordedTruth:
    """What clients met, and what was injected.

    Args:
        fault: Name of what was injected; empty when nothing was.
        injected_at: Unix seconds; ``None`` when nothing was.
        fault_ended_at: Unix seconds; ``None`` when it is not known.
        first_client_error_at: Unix seconds at which the first ordinary request failed (after the injection, where
            there was one); ``None`` when none did.
        requests: Ordinary requests.
        failed_requests: Those that failed.
    """

    fault: str = ""
    injected_at: float | None = None
    fault_ended_at: float | None = None
    first_client_error_at: float | None = None
    requests: int = 0
    failed_requests: int = 0


class TruthReader:
    """Collects the truth line by line. Bounded but for the times of failed requests; not thread-safe."""

    def __init__(self) -> None:
        self._fault = ""
        self._injected_at: float | None = None
        self._fault_ended_at: float | None = None
        self._errors_at: list[float] = []
        self._requests = 0

    def see(self, line: Mapping[str, Any]) -> None:
        """Take in a line of kind ``client`` or ``event``; what makes no sense is passed over."""
        at = _number(line.get("ts"))
        if at is None:
            return
        if line.get("kind") == "event":
            if line.get("event") == "inject" and self._injected_at is None:
                self._injected_at, self._fault = at, str(line.get("fault", ""))
            elif line.get("event") == "fault_end":
                self._fault_ended_at = at
        elif line.get("tag") != "canary":
            self._requests += 1
            if line.get("err") or line.get("status") not in (200, None):
                self._errors_at.append(at + (_number(line.get("e2e")) or 0.0))

    def truth(self) -> RecordedTruth:
        """All of it."""
        after = -math.inf if self._injected_at is None else self._injected_at
        return RecordedTruth(
            self._fault,
            self._injected_at,
            self._fault_ended_at,
            min((at for at in self._errors_at if at > after), default=None),
            self._requests,
            len(self._errors_at),
        )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
