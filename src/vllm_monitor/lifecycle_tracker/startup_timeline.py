"""How long the phases of a start take, and how long they usually do."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from vllm_monitor.picture import StartupPhase
from vllm_monitor.records import StateCheckpoint

__all__ = ["PhaseTiming", "StartupHistory", "phase_seconds"]

STARTUPS_REMEMBERED = 20
SLOW_FACTOR = 3.0
SLOW_SECONDS = 10.0
"""A phase is slow when it takes three times what it usually does, and ten seconds more."""
METADATA_KEY = "startup_seconds"
"""Where the checkpoint of a finished start keeps the seconds of its phases."""


@dataclass(frozen=True, slots=True)
class PhaseTiming:
    """One phase of the newest start.

    Args:
        phase: Which.
        began_at: Unix seconds.
        seconds: How long it took, or has taken so far.
        is_over: Whether the next one has begun.
        usual_seconds: Median of earlier starts; ``None`` when there was none.
    """

    phase: StartupPhase
    began_at: float
    seconds: float
    is_over: bool
    usual_seconds: float | None

    @property
    def is_slow(self) -> bool:
        """Whether it takes much longer than it usually does."""
        usual = self.usual_seconds
        return usual is not None and self.seconds > max(SLOW_FACTOR * usual, usual + SLOW_SECONDS)

    def __str__(self) -> str:
        usually = "" if self.usual_seconds is None else f" (usually {self.usual_seconds:.0f} s)"
        return f"{self.phase.replace('_', ' ')} {'took' if self.is_over else 'for'} {self.seconds:.0f} s{usually}"


def phase_seconds(began_at: Mapping[StartupPhase, float]) -> dict[str, float]:
    """The seconds of each phase of a start that has come to its end."""
    return {phase.value: after - at for (phase, at), (_, after) in pairwise(began_at.items())}


class StartupHistory:
    """Starts of one server that came to their end. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self._starts: deque[Mapping[str, float]] = deque(maxlen=STARTUPS_REMEMBERED)

    def remember(self, checkpoint: StateCheckpoint) -> None:
        """Take in the checkpoint of a finished start; others tell nothing."""
        seconds = checkpoint.metadata.get(METADATA_KEY)
        if isinstance(seconds, dict):
            self._starts.append({str(name): float(value) for name, value in seconds.items()})

    def usual_seconds(self, phase: StartupPhase) -> float | None:
        """What a phase usually takes; ``None`` when it was never seen."""
        known = [start[phase.value] for start in self._starts if phase.value in start]
        return statistics.median(known) if known else None

    def timeline(self, began_at: Mapping[StartupPhase, float], now: float) -> tuple[PhaseTiming, ...]:
        """The phases of the newest start beside what they usually take; ``ACCEPTING`` ends it and is none itself."""
        phases = list(began_at.items())
        ends = [*(at for _, at in phases), now][1:]
        return tuple(
            PhaseTiming(phase, at, max(0.0, end - at), index + 1 < len(phases), self.usual_seconds(phase))
            for index, ((phase, at), end) in enumerate(zip(phases, ends, strict=True))
            if phase is not StartupPhase.ACCEPTING
        )
