"""The integers of one column as bytes: which of the possible forms takes the fewest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.samples.blocks.directory import Form
from vllm_monitor.persistence.samples.blocks.integers import Integers
from vllm_monitor.persistence.samples.blocks.masks import ALL_ROWS, MaskWriter
from vllm_monitor.persistence.samples.blocks.planes import Planes, Unsigned, to_planes, zigzag
from vllm_monitor.persistence.samples.blocks.quantum import split_by_quantum

__all__ = ["Section", "entropy_bytes", "level_section", "move_section"]

_NO_PLANES = Planes(0, 0, b"", b"")
_FEWEST_FOR_QUANTUM = 8
_QUANTA_PER_SECOND = (1e9, 1e6, 1e3, 100.0)
_ROWS_WORTH_A_MASK = 0.97
_MOST_SYMBOLS = 4096


@dataclass(frozen=True, slots=True)
class Section:
    """What a column has in its stream, and the fields of the directory that say how to read it."""

    form: int
    mask: int
    planes: Planes
    rest: Planes = _NO_PLANES
    quantum: float = 0.0

    @property
    def packed_bytes(self) -> bytes:
        """What goes into the stream."""
        return self.planes.packed_bytes + self.rest.packed_bytes

    @property
    def noise_bytes(self) -> bytes:
        """What goes into its noise."""
        return self.planes.noise_bytes + self.rest.noise_bytes


def move_section(
    moves: Integers, grid: int, masks: MaskWriter, shared_mask: NDArray[np.bool_] | None = None
) -> Section:
    """How a column moves; rows where it does not are left out.

    Args:
        moves: One per row but the first.
        grid: The grid of the column; finer ones than 0 may hide a quantum.
        masks: Collects the rows that are not left out.
        shared_mask: Rows to keep, instead of just those that move.
    """
    mask = moves != 0 if shared_mask is None else shared_mask
    if int(np.count_nonzero(mask)) >= _ROWS_WORTH_A_MASK * len(moves):
        number, kept = ALL_ROWS, moves
    else:
        number, kept = masks.number_of(np.concatenate(([False], mask))), moves[mask]
    if 0 < grid <= 62 and len(kept) >= _FEWEST_FOR_QUANTUM:
        with_quantum = _quantum_section(kept, grid, number)
        if with_quantum is not None:
            return with_quantum
    form, unsigned = _smallest(kept)
    return Section(form, number, to_planes(unsigned))


def level_section(integers: Integers) -> Section:
    """Where a column is, row by row, above its lowest."""
    return Section(Form.LEVEL | Form.UNSIGNED, ALL_ROWS, to_planes((integers - integers.min()).view(np.uint64)))


def entropy_bytes(symbols: NDArray[np.int64]) -> float:
    """Bytes that symbols take, were each coded for its share alone; all the more, the wider they are spread."""
    if not len(symbols):
        return 0.0
    lowest, highest = int(symbols.min()), int(symbols.max())
    if highest - lowest >= _MOST_SYMBOLS:
        return float(np.log2(1.0 + 2.0 * np.abs(symbols.astype(np.float64))).sum()) / 8
    counts = np.bincount(symbols - lowest)
    counts = counts[counts > 0]
    return float(counts @ np.log2(len(symbols) / counts)) / 8


def _smallest(kept: Integers) -> tuple[int, Unsigned]:
    lowest = int(kept.min()) if len(kept) else 0
    if lowest < 0:
        return 0, zigzag(kept)
    if lowest == 0:
        return Form.UNSIGNED, kept.view(np.uint64)
    return Form.UNSIGNED | Form.FROM_ONE, (kept - 1).view(np.uint64)


def _quantum_section(kept: Integers, grid: int, mask: int) -> Section | None:
    best_bits = _bits(kept) - 2 * len(kept)
    best = None
    for per_second in _QUANTA_PER_SECOND:
        quantum = float(2.0**grid) / per_second
        if quantum < 4:
            continue
        times, rest = split_by_quantum(kept, quantum)
        bits = _bits(times) + _bits(rest)
        if bits < best_bits:
            best_bits, best = bits, (quantum, times, rest)
    if best is None:
        return None
    quantum, times, rest = best
    form, unsigned = _smallest(times)
    return Section(form, mask, to_planes(unsigned), to_planes(zigzag(rest)), quantum)


def _bits(numbers: Integers) -> float:
    return float(np.log2(1.0 + 2.0 * np.abs(numbers.astype(np.float64))).sum())
