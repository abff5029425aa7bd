"""Roll-ups joined to longer ones, and made coarser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.samples.block_rows import RollupRow
from vllm_monitor.persistence.samples.matrices import union_of_layouts
from vllm_monitor.persistence.samples.rollup_codec import Form, Rollup, RollupReader
from vllm_monitor.persistence.samples.summaries import MINUTE_MS, MOST_MINUTES_APART, Floats

__all__ = ["OldRollup", "coarsen", "join_rollups", "joinable", "read_rollup"]


class OldRollup(NamedTuple):
    """A roll-up to be joined with others, and the columns of its layout."""

    row: RollupRow
    series_ids: tuple[int, ...]
    rollup: Rollup


def read_rollup(payload: bytes, columns: int) -> Rollup:
    """All of a payload.

    Raises:
        StoreDamagedError: When it cannot be read.
    """
    reader = RollupReader(lambda offset, length: payload[offset : offset + length], len(payload))
    return reader.read(range(columns))


def joinable(rollups: Sequence[OldRollup]) -> Iterator[list[OldRollup]]:
    """Groups in which each series is kept in the same way; nearly always one.

    A counter with a NaN among its samples is kept as a gauge is.
    """
    groups: list[tuple[dict[int, bool], list[OldRollup]]] = []
    for one in rollups:
        ways = dict(zip(one.series_ids, (one.rollup.forms == Form.GAUGE).tolist(), strict=True))
        for known, members in groups:
            if all(known.get(number, way) == way for number, way in ways.items()):
                known.update(ways)
                members.append(one)
                break
        else:
            groups.append((ways, [one]))
    return (members for _, members in groups)


def join_rollups(rollups: Sequence[OldRollup]) -> tuple[tuple[int, ...], Rollup]:
    """The columns and the content of some roll-ups in order of time, joined; partial buckets are merged."""
    layouts = list(dict.fromkeys(one.series_ids for one in rollups))
    union, wheres = union_of_layouts(layouts)
    where = dict(zip(layouts, wheres, strict=True))
    joining = _Joining(np.unique(np.concatenate([one.rollup.bucket_ms for one in rollups])), len(union))
    for one in rollups:
        joining.add(one.rollup, where[one.series_ids])
    return union, joining.finish()


@dataclass(slots=True)
class _Ends:
    """Where each column stands."""

    seen: NDArray[np.bool_]
    last: Floats
    minute: NDArray[np.int64]


class _Joining:
    def __init__(self, buckets: NDArray[np.int64], columns: int) -> None:
        shape = (len(buckets), columns)
        self._buckets = buckets
        self._forms = np.zeros(columns, dtype=np.uint8)
        self._there = np.zeros(shape, dtype=bool)
        self._first = np.zeros(columns)
        self._last, self._correction, self._total, self._count = (np.zeros(shape) for _ in range(4))
        self._low, self._high = np.full(shape, np.nan), np.full(shape, np.nan)
        self._first_sequence = np.iinfo(np.int64).max
        self._last_sequences = np.full(len(buckets), np.iinfo(np.int64).min)
        self._ends = _Ends(np.zeros(columns, dtype=bool), np.zeros(columns), np.zeros(columns, dtype=np.int64))

    def add(self, part: Rollup, columns: NDArray[np.intp]) -> None:
        """Add a roll-up that comes after those before it."""
        rows = np.searchsorted(self._buckets, part.bucket_ms)
        cells, there = np.ix_(rows, columns), part.present
        self._last[cells] = np.where(there, part.last, self._last[cells])
        with np.errstate(all="ignore"):
            for mine, more in (
                (self._correction, part.correction),
                (self._total, part.total),
                (self._count, part.count),
            ):
                mine[cells] += np.where(there, more, 0.0)
            self._low[cells] = np.fmin(self._low[cells], np.where(there, part.low, np.nan))
            self._high[cells] = np.fmax(self._high[cells], np.where(there, part.high, np.nan))
            self._connect(part, rows, columns)
        self._first_sequence = min(self._first_sequence, part.first_sequence)
        self._last_sequences[rows] = np.maximum(self._last_sequences[rows], part.last_sequences)
        self._there[cells] |= there
        self._forms[columns] = np.maximum(self._forms[columns], part.forms)

    def finish(self) -> Rollup:
        """All that was added."""
        is_counter = self._forms != Form.GAUGE
        correction = np.where(is_counter, self._correction, 0.0)
        forms = np.where(is_counter & correction.any(axis=0), Form.COUNTER_WITH_RESETS, self._forms)
        return Rollup(
            self._buckets, forms.astype(np.uint8), self._there, self._first, self._last, correction,
            self._low, self._high, self._total, self._count, self._first_sequence, self._last_sequences,
        )  # fmt: skip

    def _connect(self, part: Rollup, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> None:
        """Account for what happened between the last sample so far and the first of ``part``."""
        ends = self._ends
        has = part.present.any(axis=0)
        first_row = part.present.argmax(axis=0)
        last_row = len(rows) - 1 - part.present[::-1].argmax(axis=0)
        minutes = part.bucket_ms // MINUTE_MS
        before, first = ends.last[columns], part.first
        is_apart = minutes[first_row] - ends.minute[columns] > MOST_MINUTES_APART
        lost = np.where(is_apart, before - first, np.where(first < before, before, 0.0))
        known = has & ends.seen[columns]
        at = rows[first_row[known]], columns[known]
        self._correction[at] += lost[known]
        new = has & ~ends.seen[columns]
        self._first[columns[new]] = first[new]
        ends.seen[columns[has]] = True
        ends.last[columns[has]] = part.last[last_row, np.arange(len(columns))][has]
        ends.minute[columns[has]] = minutes[last_row][has]


def coarsen(rollup: Rollup, step_seconds: int) -> Rollup:
    """The same in steps that are a multiple of those it has."""
    numbers = rollup.bucket_ms // (step_seconds * 1000)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers)) + 1))
    there = rollup.present
    newest = np.maximum.reduceat(np.where(there, np.arange(len(numbers))[:, None], -1), starts, axis=0)
    with np.errstate(all="ignore"):
        return Rollup(
            numbers[starts] * (step_seconds * 1000),
            rollup.forms,
            np.logical_or.reduceat(there, starts, axis=0),
            rollup.first,
            np.take_along_axis(rollup.last, np.maximum(newest, 0), axis=0),
            np.add.reduceat(np.where(there, rollup.correction, 0.0), starts, axis=0),
            np.fmin.reduceat(np.where(there, rollup.low, np.nan), starts, axis=0),
            np.fmax.reduceat(np.where(there, rollup.high, np.nan), starts, axis=0),
            np.add.reduceat(np.where(there, rollup.total, 0.0), starts, axis=0),
            np.add.reduceat(np.where(there, rollup.count, 0.0), starts, axis=0),
            rollup.first_sequence,
            np.maximum.reduceat(rollup.last_sequences, starts),
        )
