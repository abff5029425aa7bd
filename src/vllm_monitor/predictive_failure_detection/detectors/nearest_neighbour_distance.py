"""How far a number is from the nearest ones among the last thousands."""

from __future__ import annotations

from bisect import bisect_left

from vllm_monitor.predictive_failure_detection.detectors.sorted_window import SortedWindow

__all__ = ["NearestNeighbourDistance"]


class NearestNeighbourDistance:
    """The sum of the distances to the k nearest of the numbers seen last: large where there were few.

    Unlike the distance from a mean it also sees what lies between two usual levels, and needs no shape of the
    distribution. Not thread-safe: one owner.

    Args:
        neighbours: k.
        capacity: How many numbers are remembered.
        least: How many must be remembered before distances mean anything: the fewer there are, the larger they get.

    References:
        Knorr, Ng and Tucakov, "Distance-based outliers: algorithms and applications", VLDB Journal 8, 2000;
        the sum over k neighbours: Angiulli and Pizzuti, "Fast outlier detection in high dimensional spaces", 2002.

    Example:
        >>> distance = NearestNeighbourDistance(neighbours=2, capacity=100, least=4)
        >>> for number in (1.0, 2.0, 3.0, 10.0):
        ...     distance.add(number)
        >>> distance.of(2.5), distance.of(9.0), distance.of(20.0)
        (1.0, 7.0, 27.0)
    """

    def __init__(self, neighbours: int, capacity: int, least: int) -> None:
        self._neighbours = neighbours
        self._least = max(least, neighbours)
        self._window = SortedWindow(capacity)

    def of(self, number: float) -> float | None:
        """The sum of distances, in the unit of the numbers; ``None`` while there are too few to tell."""
        numbers = self._window.ascending
        count = len(numbers)
        if count < self._least:
            return None
        above = bisect_left(numbers, number)
        below = above - 1
        total = 0.0
        for _ in range(self._neighbours):
            if below < 0 or (above < count and numbers[above] - number < number - numbers[below]):
                total += numbers[above] - number
                above += 1
            else:
                total += number - numbers[below]
                below -= 1
        return total

    def add(self, number: float) -> None:
        """Remember it, and forget the oldest if there are too many. The number must be finite."""
        self._window.add(number)

    def state(self) -> list[float]:
        """What is remembered, oldest first."""
        return self._window.state()

    def restore(self, state: list[float]) -> None:
        """Remember what ``state`` gave, and nothing else."""
        self._window.restore(state)
