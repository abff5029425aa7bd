"""Columns that move as others do: copies, and sums or differences of two.

Servers print the same fact several times: the count of every histogram of finished requests, tokens by source beside
all tokens, prefill and decode beside both. Such relations are found by a linear hash of how each column moves
(``hash(a + b) = hash(a) + hash(b)`` modulo 2**64) and then verified exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_copies", "find_sums", "hash_moves"]

Hashes = NDArray[np.uint64]
Moves = NDArray[np.int64]

_MOST_COLUMNS = 256  # pairs of more would cost more than they save


def hash_moves(moves: Moves) -> Hashes:
    """One hash per row of ``moves`` (columns, moves)."""
    return np.asarray(moves.view(np.uint64) @ _weights(moves.shape[1]), dtype=np.uint64)


def find_copies(moves: Moves, hashes: Hashes, grids: NDArray[np.int16], order: Sequence[int]) -> dict[int, int]:
    """Column to the earlier column of ``order`` that moves in exactly the same way."""
    first: dict[tuple[int, int], int] = {}
    copies = {}
    for column in order:
        known = first.setdefault((int(grids[column]), int(hashes[column])), column)
        if known != column and np.array_equal(moves[known], moves[column]):
            copies[column] = known
    return copies


def find_sums(
    moves: Moves, hashes: Hashes, columns: Sequence[int], costs: NDArray[np.float64]
) -> dict[int, tuple[int, int, bool]]:
    """Column to two others that it is the sum (or, if true, the difference) of; costly columns first.

    None of the others is itself in the result. All ``columns`` must be on the same grid.
    """
    if not 3 <= len(columns) <= _MOST_COLUMNS:
        return {}
    numbers = np.array(columns)
    own = hashes[numbers]
    sums = own[:, None] + own[None, :]
    order = np.argsort(own)
    place = np.searchsorted(own, sums, sorter=order).clip(max=len(own) - 1)
    hits = own[order[place]] == sums
    found = []
    for one, other in np.argwhere(np.triu(hits)).tolist():
        whole = int(order[place[one, other]])
        found.append((int(numbers[whole]), int(numbers[one]), int(numbers[other])))
    candidates = []
    for whole, one, other in found:
        candidates.append((costs[whole], whole, one, other, False))
        candidates.append((costs[one], one, whole, other, True))
        candidates.append((costs[other], other, whole, one, True))
    derived: dict[int, tuple[int, int, bool]] = {}
    bases: set[int] = set()
    for _, column, one, other, minus in sorted(candidates, reverse=True):
        if column in derived or column in bases or one in derived or other in derived or column in {one, other}:
            continue
        if np.array_equal(moves[column], moves[one] - moves[other] if minus else moves[one] + moves[other]):
            derived[column] = (one, other, minus)
            bases.update((one, other))
    return derived


@lru_cache(maxsize=16)
def _weights(length: int) -> Hashes:
    """Fixed, well mixed odd numbers (the finalizer of SplitMix64)."""
    mixed = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) | np.uint64(1))
