"""Integers near the multiples of a quantum: how many times, and what is left over.

The difference of two readings of a nanosecond clock is a whole number of nanoseconds but for the rounding of
float64; the number of nanoseconds and that small rest take fewer bits than the number on the float's finer grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["split_by_quantum", "with_quantum"]

Integers = NDArray[np.int64]

_LARGEST_TIMES = float(1 << 52)


def split_by_quantum(numbers: Integers, quantum: float) -> tuple[Integers, Integers]:
    """How many times the quantum, and the rest; ``with_quantum`` is the inverse."""
    times = np.rint(numbers / quantum).astype(np.int64)
    return times, numbers - _multiples(times, quantum)


def with_quantum(times: Integers, rest: Integers, quantum: float) -> Integers:
    """The integers that :func:`split_by_quantum` was given."""
    return _multiples(times, quantum) + rest


def _multiples(times: Integers, quantum: float) -> Integers:
    """One multiplication and one rounding, both exact in IEEE 754: the same on every machine."""
    return np.asarray(np.rint(np.clip(times * quantum, -_LARGEST_TIMES * 512, _LARGEST_TIMES * 512)), dtype=np.int64)
