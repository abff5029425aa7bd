"""Scrapes as a matrix, and several of them joined although their series differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Matrix", "join_matrices", "union_of_layouts"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Scrapes of one stream in order of arrival.

    Args:
        series_ids: The columns: ``series.id`` of each; a faulty page may repeat one.
        times_ms: Unix milliseconds of each row.
        sequences: The number of each row in the order of arrival, ascending.
        bits: (rows, columns) of float64 bits.
        present: (rows, columns), false where a series was not there; ``None``: all were there.
    """

    series_ids: Ids
    times_ms: NDArray[np.int64]
    sequences: NDArray[np.int64]
    bits: NDArray[np.uint64]
    present: NDArray[np.bool_] | None = None

    @property
    def samples(self) -> int:
        """Cells that hold a sample."""
        return self.bits.size if self.present is None else int(np.count_nonzero(self.present))

    def is_same_as(self, other: Matrix) -> bool:
        """Whether every sample is the same, bit for bit, in the same order."""
        mine, others = self.present, other.present
        if self.bits.shape != other.bits.shape or self.series_ids != other.series_ids:
            return False
        if mine is None and others is None:
            same_bits = np.array_equal(self.bits, other.bits)
        else:
            mine = np.ones(self.bits.shape, dtype=bool) if mine is None else mine
            others = np.ones(self.bits.shape, dtype=bool) if others is None else others
            same_bits = np.array_equal(mine, others) and np.array_equal(self.bits[mine], other.bits[mine])
        return (
            same_bits
            and np.array_equal(self.times_ms, other.times_ms)
            and np.array_equal(self.sequences, other.sequences)
        )


def union_of_layouts(layouts: Sequence[Ids]) -> tuple[Ids, list[NDArray[np.intp]]]:
    """A layout with the columns of all, and where the columns of each are in it.

    A column keeps its neighbours: what one layout has and another has not comes after the column before it.
    """
    order: list[tuple[int, int]] = []
    known: set[tuple[int, int]] = set()
    all_keys = [_numbered(layout) for layout in layouts]
    for keys in all_keys:
        behind: dict[tuple[int, int] | None, list[tuple[int, int]]] = {}
        last: tuple[int, int] | None = None
        for key in keys:
            if key in known:
                last = key
            else:
                behind.setdefault(last, []).append(key)
        if behind:
            known.update(keys)
            merged = list(behind.get(None, ()))
            for key in order:
                merged.append(key)
                merged.extend(behind.get(key, ()))
            order = merged
    place = {key: column for column, key in enumerate(order)}
    wheres = [np.array([place[key] for key in keys], dtype=np.intp) for keys in all_keys]
    return tuple(series_id for series_id, _ in order), wheres


def join_matrices(parts: Sequence[Matrix]) -> Matrix:
    """All rows of some matrices, in order of arrival."""
    layouts = list(dict.fromkeys(part.series_ids for part in parts))
    times = np.concatenate([part.times_ms for part in parts])
    sequences = np.concatenate([part.sequences for part in parts])
    present: NDArray[np.bool_] | None = None
    if len(layouts) == 1:
        union = layouts[0]
        bits = np.concatenate([part.bits for part in parts])
        if any(part.present is not None for part in parts):
            present = np.concatenate(
                [np.ones(part.bits.shape, dtype=bool) if part.present is None else part.present for part in parts]
            )
    else:
        union, wheres = union_of_layouts(layouts)
        where = dict(zip(layouts, wheres, strict=True))
        bits = np.zeros((len(times), len(union)), dtype=np.uint64)
        present = np.zeros(bits.shape, dtype=bool)
        at = 0
        for part in parts:
            rows, columns = slice(at, at + len(part.times_ms)), where[part.series_ids]
            bits[rows, columns] = part.bits
            present[rows, columns] = True if part.present is None else part.present
            at = rows.stop
    if np.any(sequences[1:] < sequences[:-1]):
        order = np.argsort(sequences, kind="stable")
        times, sequences, bits = times[order], sequences[order], bits[order]
        present = None if present is None else present[order]
    if present is not None and present.all():
        present = None
    return Matrix(union, times, sequences, bits, present)


def _numbered(layout: Ids) -> list[tuple[int, int]]:
    """Each series with how often it came before: a faulty page repeats some."""
    if len(set(layout)) == len(layout):
        return [(series_id, 0) for series_id in layout]
    seen: dict[int, int] = {}
    keys = []
    for series_id in layout:
        seen[series_id] = seen.get(series_id, -1) + 1
        keys.append((series_id, seen[series_id]))
    return keys
