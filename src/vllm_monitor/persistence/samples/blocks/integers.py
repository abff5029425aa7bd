"""Columns of float64 bits as columns of integers, exactly, and back.

A column is read on a grid: the float64 ``value`` is the integer ``value * 2**grid``. Counters are on grid 0; sums of
time differences are on the grid of the clock that was read, which is coarser than float64 can be. A column on no
grid (NaN, infinities, -0.0, too wide a range) stays what it is: its bits, taken as integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BITS_GRID", "Bits", "Integers", "from_integers", "to_integers"]

Bits = NDArray[np.uint64]
Integers = NDArray[np.int64]

BITS_GRID = 0x7FFF
"""Stands for "no grid": the integers are the bits."""

_LARGEST = float(1 << 61)  # differences of two such integers fit into int64
_FINEST_GRID = 1000  # finer ones belong to numbers so small that bits do as well
_MANTISSA = np.uint64((1 << 52) - 1)
_IMPLICIT = np.uint64(1 << 52)
_EXPONENT_SHIFT = np.uint64(52)
_EXPONENT = np.uint64(0x7FF)
_NEGATIVE_ZERO = np.uint64(1 << 63)


def to_integers(bits: Bits) -> tuple[Integers, NDArray[np.int16]]:
    """Columns as integers.

    Args:
        bits: (columns, rows) of float64 bits, each column contiguous.

    Returns:
        The integers in the same shape, and the grid of each column.
    """
    grids = np.zeros(len(bits), dtype=np.int16)
    values = bits.view(np.float64)
    with np.errstate(invalid="ignore"):
        integers = values.astype(np.int64)
        whole = (integers.astype(np.float64).view(np.uint64) == bits).all(axis=1)
        whole &= (np.abs(values) < _LARGEST).all(axis=1)
    for column in np.flatnonzero(~whole).tolist():
        integers[column], grids[column] = _on_grid(bits[column])
    return integers, grids


def from_integers(integers: Integers, grid: int) -> Bits:
    """The bits of one column, from its integers and its grid."""
    if grid == BITS_GRID:
        return integers.view(np.uint64)
    values = integers.astype(np.float64)
    if grid:
        with np.errstate(over="ignore", under="ignore"):  # only a forged grid gets there
            values = np.ldexp(values, -grid)
    return values.view(np.uint64)


def _on_grid(bits: Bits) -> tuple[Integers, int]:
    as_bits = bits.view(np.int64)
    values = bits.view(np.float64)
    if not np.isfinite(values).all() or (bits == _NEGATIVE_ZERO).any():
        return as_bits, BITS_GRID
    used = bits[values != 0]
    exponents = ((used >> _EXPONENT_SHIFT) & _EXPONENT).astype(np.int64)
    mantissas = (used & _MANTISSA) | np.where(exponents > 0, _IMPLICIT, np.uint64(0))
    lowest_bits = mantissas & (~mantissas + np.uint64(1))
    trailing = np.frexp(lowest_bits.astype(np.float64))[1] - 1
    grid = max(0, -int((np.maximum(exponents, 1) - 1075 + trailing).min()))
    if grid > _FINEST_GRID:
        return as_bits, BITS_GRID
    with np.errstate(over="ignore"):
        scaled = np.ldexp(values, grid)
    if float(np.abs(scaled).max()) >= _LARGEST:
        return as_bits, BITS_GRID
    return scaled.astype(np.int64), grid
