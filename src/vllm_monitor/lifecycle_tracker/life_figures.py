"""Figures of a server's life, for rules."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LifeFigures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeFigures:
    """Where a server stands in its life, in numbers.

    Args:
        state_since: Unix seconds at which the state was entered.
        restarts: Times the server was started again.
        crashes: Times it died without being asked to.
        failures_in_a_row: Crashes since it last served for a minute.
        startup_phase: The phase of a start under way, else empty.
        startup_phase_seconds: How long that phase has taken.
        startup_is_slow: Whether that is much longer than usual.
    """

    state_since: float = 0.0
    restarts: int = 0
    crashes: int = 0
    failures_in_a_row: int = 0
    startup_phase: str = ""
    startup_phase_seconds: float = 0.0
    startup_is_slow: bool = False
