"""The largest number of the last rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["RecentMaximum"]


class RecentMaximum:
    """The maximum of a sliding window, in constant time: only what may yet become the maximum is kept.

    Not thread-safe: one owner.

    Args:
        rows: The width of the window.

    References:
        Lemire, "Streaming maximum-minimum filter using no more than three comparisons per element", 2006.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._row = 0
        self._falling: deque[tuple[int, float]] = deque()

    @property
    def value(self) -> float | None:
        """The largest of the last rows; ``None`` when there is none."""
        return self._falling[0][1] if self._falling else None

    def add(self, number: float | None) -> None:
        """The next row; ``None`` when it has no number."""
        self._row += 1
        if number is not None:
            while self._falling and self._falling[-1][1] <= number:
                self._falling.pop()
            self._falling.append((self._row, number))
        while self._falling and self._falling[0][0] <= self._row - self._rows:
            self._falling.popleft()

    def state(self) -> list[list[float]]:
        """What may yet become the maximum, and how many rows ago it was."""
        return [[self._row - row, number] for row, number in self._falling]

    def restore(self, state: Iterable[Iterable[float]]) -> None:
        """Take over what ``state`` gave."""
        self._row = 0
        self._falling = deque((-int(ago), number) for ago, number in state)
