"""How rare a strangeness is, measured by nothing but its rank among earlier ones."""

from __future__ import annotations

import math
from bisect import bisect_left

from vllm_monitor.predictive_failure_detection.detectors.sorted_window import SortedWindow

__all__ = ["ConformalRank"]

LEAST_RANKED = 20
FURTHEST_BEYOND = 5.0
"""Nats; a stream that never moved has no scale, so how far beyond it something lies must end somewhere."""


class ConformalRank:
    """Conformal p-values of strangeness scores, whatever their unit and distribution.

    The p-value of a score is the share of earlier ones at least as large. It cannot be smaller than one in the number
    of earlier scores; so a score beyond all of them also gets the logarithm of how many times the largest it is.
    Not thread-safe: one owner.

    Args:
        capacity: With how many of the last scores a score is compared.

    References:
        Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005. For streams and with distances
        to nearest neighbours: Burnaev and Ishimtsev, "Conformalized density- and distance-based anomaly detection
        in time-series data", arXiv:1608.04585, 2016.

    Example:
        >>> rank = ConformalRank(capacity=1000)
        >>> for number in range(99):
        ...     rank.add(float(number))
        >>> [round(rank.surprise(score), 3) for score in (0.0, 90.0, 98.0, 980.0)]
        [0.0, 2.303, 3.912, 6.908]
    """

    def __init__(self, capacity: int) -> None:
        self._window = SortedWindow(capacity)

    def surprise(self, score: float) -> float:
        """-log p in nats: 0 for the usual; also while there are too few scores to tell."""
        scores = self._window.ascending
        count = len(scores)
        if count < LEAST_RANKED:
            return 0.0
        at_least_as_large = count - bisect_left(scores, score)
        if at_least_as_large:
            return math.log((count + 1) / (at_least_as_large + 1))
        largest = scores[-1]
        beyond = min(math.log(score / largest), FURTHEST_BEYOND) if largest > 0.0 else FURTHEST_BEYOND
        return math.log(count + 1) + beyond

    def add(self, score: float) -> None:
        """Compare later scores with this one too. It must be finite and not negative."""
        self._window.add(score)

    def state(self) -> list[float]:
        """The scores that are compared with, oldest first."""
        return self._window.state()

    def restore(self, state: list[float]) -> None:
        """Compare with what ``state`` gave, and nothing else."""
        self._window.restore(state)
