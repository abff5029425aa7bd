"""Columns that move almost as others do: what is left when one or two others are taken off.

The time that a request took is the sum of the times of its phases but for the rounding of floats; the duration that
the HTTP server saw is the engine's and a little more. Relations are not known by name: a few rows are tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Likeness", "find_likenesses", "regrid"]

Likeness = tuple[int, int]
"""The column to take off, and a second one or -1."""

Moves = NDArray[np.int64]

_TRIED_ROWS = 128
_MOST_COLUMNS = 64
_MOST_FOR_PAIRS = 16
_FEWEST_BITS_SAVED = 1.5  # per row tried: less would not pay for a mask of its own


def find_likenesses(moves: Moves, grids: NDArray[np.int16], columns: Sequence[int]) -> dict[int, Likeness]:
    """Column to the one or two others of ``columns`` that it is best coded beside; nothing refers back to itself."""
    fine = [column for column in columns if grids[column]][:_MOST_FOR_PAIRS]
    tried = (fine + [column for column in columns if not grids[column]])[:_MOST_COLUMNS]
    if len(tried) < 2:
        return {}
    rows = np.flatnonzero((moves[tried] != 0).any(axis=0))
    rows = rows[:: max(1, len(rows) // _TRIED_ROWS)][:_TRIED_ROWS]
    sample = np.ldexp(moves[tried][:, rows].astype(np.float64), -grids[tried].astype(np.int64)[:, None])
    one, other = np.triu_indices(len(fine), 1)
    pairs = sample[one] + sample[other]
    gains: list[tuple[float, int, int, int]] = []
    for index, column in enumerate(tried):
        own = sample[index]
        scale = float(2.0 ** int(grids[column]))
        alone = _bits(own, scale)
        for taken, firsts, seconds in ((sample, np.arange(len(tried)), None), (pairs, one, other)):
            if seconds is not None and index >= len(fine):
                break
            left = _bits(own - taken, scale)
            left[(firsts == index) if seconds is None else (firsts == index) | (seconds == index)] = np.inf
            if len(left) and alone - left.min() > _FEWEST_BITS_SAVED * len(rows):
                best = int(left.argmin())
                second = -1 if seconds is None else tried[int(seconds[best])]
                gains.append((float(alone - left[best]), column, tried[int(firsts[best])], second))
    chosen: dict[int, Likeness] = {}
    for _, column, first, second in sorted(gains, reverse=True):
        if column not in chosen and not _reaches(first, column, chosen) and not _reaches(second, column, chosen):
            chosen[column] = first, second
    return chosen


def regrid(moves: Moves, from_grid: int, to_grid: int) -> Moves:
    """Moves on another grid; to a coarser one they are rounded, the same on every machine."""
    if to_grid == from_grid:
        return moves
    if to_grid > from_grid:
        return moves << min(to_grid - from_grid, 63)
    coarser = min(from_grid - to_grid, 62)
    return (moves + (1 << (coarser - 1))) >> coarser


def _reaches(start: int, column: int, chosen: dict[int, Likeness]) -> bool:
    if start == column:
        return True
    return start in chosen and any(_reaches(one, column, chosen) for one in chosen[start])


def _bits(seconds: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    return np.asarray(np.log2(1.0 + 2.0 * scale * np.abs(seconds)).sum(axis=-1))
