"""Requests that were refused, counted by reason: thousands a second must cost no more than a sum each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["Rejections"]

MOST_REASONS = 16
"""Reasons counted apart; further ones are ``other``."""
MOST_TEXT = 80


class Rejections:
    """What vLLM reports on the event loop, and what our gate has counted itself.

    Args:
        gate: Gives what the gate of this process has refused, by reason; asked in the thread.
    """

    def __init__(self, gate: Callable[[], Mapping[str, int]] = dict) -> None:
        self._gate = gate
        self._counts: dict[str, int] = {}

    def count(self, reason: object) -> None:
        """One more that vLLM has refused; for the event loop: no lock, no line."""
        name = reason[:MOST_TEXT] if isinstance(reason, str) and reason else "unknown"
        if name not in self._counts and len(self._counts) >= MOST_REASONS:
            name = "other"
        self._counts[name] = self._counts.get(name, 0) + 1

    def as_json(self) -> dict[str, int]:
        """All that were refused since this process began, by reason; those of the gate are named ``gate_...``."""
        gate = {f"gate_{reason}": count for reason, count in dict(self._gate()).items()}
        return {**gate, **dict(self._counts)}  # a copy is made at one go, so the loop may count meanwhile
