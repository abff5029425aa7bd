"""How long a token usually takes at each load, so that slower at equal load can be told from merely busier."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["LoadBaseline"]

LEAST_LOOKS = 60
"""Looks at a load level before anything is said of it."""
MEMORY_LOOKS = 3_600.0
"""Looks after which an old one counts a third of what it did."""
MOST_LEVELS = 32
LEAST_SECONDS, MOST_SECONDS = 1e-6, 1e4
"""Any other time between two tokens is a fault of the page."""


class LoadBaseline:
    """Mean time between tokens by load level (requests in the batch, in steps of two), exponentially forgotten.

    Learns only while told to, so that a slowdown does not become what is usual. Bounded; not thread-safe.
    """

    def __init__(self) -> None:
        self._levels: dict[int, tuple[float, float]] = {}

    def ratio(self, running: float | None, seconds: float | None) -> float | None:
        """A time between tokens against what is usual at this load; ``None`` when that is not known yet."""
        level = _level(running)
        if level is None or seconds is None or not LEAST_SECONDS <= seconds <= MOST_SECONDS:
            return None
        looks, mean = self._levels.get(level, (0.0, 0.0))
        return seconds / mean if looks >= LEAST_LOOKS else None

    def learn(self, running: float | None, seconds: float | None) -> None:
        """Take in one look at a server that is well."""
        level = _level(running)
        if level is None or seconds is None or not LEAST_SECONDS <= seconds <= MOST_SECONDS:
            return
        looks, mean = self._levels.get(level, (0.0, 0.0))
        looks = min(looks + 1.0, MEMORY_LOOKS)
        self._levels[level] = (looks, mean + (seconds - mean) / looks)

    def state(self) -> dict[str, Any]:
        """All that it has learned, as values that the store keeps."""
        return {"levels": [[level, looks, mean] for level, (looks, mean) in sorted(self._levels.items())]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; what makes no sense in it is left out."""
        levels = state.get("levels")
        for item in levels if isinstance(levels, list | tuple) else ():
            if not isinstance(item, list | tuple) or len(item) != 3:
                continue
            if not all(isinstance(one, int | float) and math.isfinite(one) for one in item):
                continue
            level, looks, mean = item
            if 0 <= level < MOST_LEVELS and 0 < looks <= MEMORY_LOOKS and LEAST_SECONDS <= mean <= MOST_SECONDS:
                self._levels[int(level)] = (float(looks), float(mean))


def _level(running: float | None) -> int | None:
    if running is None or not math.isfinite(running) or running < 1.0:
        return None
    return min(MOST_LEVELS - 1, int(math.log2(running)))
