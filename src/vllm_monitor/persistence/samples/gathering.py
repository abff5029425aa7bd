"""Samples of many series, collected piece by piece and put in order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.results import SeriesData
from vllm_monitor.persistence.samples.sample_rows import StoredSeries

__all__ = ["NOT_COMMITTED", "Gathered", "Gathering", "JoinedTimes", "Part", "SeriesKey"]

NOT_COMMITTED = 1 << 62
"""The origin of samples that are still in memory: they arrived after all others."""

SeriesKey = tuple[str, str, str, Hashable]


class Part(NamedTuple):
    """Samples of one series from one place: times, values, and how they arrived.

    Args:
        times_ms: Unix milliseconds.
        values: float64 of each.
        origin: The store where they first arrived.
        sequences: The row of each, there; or how to find out, since it matters only where times are equal.
        position: The place in the row: of each, or of all.
    """

    times_ms: NDArray[np.int64]
    values: NDArray[np.float64]
    origin: int
    sequences: NDArray[np.int64] | Callable[[], NDArray[np.int64]]
    position: NDArray[np.int64] | int


class JoinedTimes:
    """Joins the times of parts, only once if the next series has its samples in the very same parts."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = []
        self._joined: tuple[NDArray[np.int64], bool] = np.empty(0, dtype=np.int64), True

    def of(self, parts: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], bool]:
        """All times, and whether each is later than the one before."""
        if len(parts) != len(self._parts) or any(map(operator.is_not, parts, self._parts)):
            times = parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._parts, self._joined = parts, (times, bool((times[1:] > times[:-1]).all()))
        return self._joined


@dataclass(slots=True)
class Gathered:
    """What was found of one series."""

    target: str
    stored: StoredSeries
    parts: list[Part] = field(default_factory=list)

    def in_order(self, joined: JoinedTimes | None = None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All times and values: ascending by time, equal times in order of arrival.

        Args:
            joined: Shared by the series of a question: those of the same scrapes then get the same array of times.
        """
        if len(self.parts) > 1:
            self.parts.sort(key=lambda part: int(part.times_ms[0]))
        times, ascend = (joined or JoinedTimes()).of([part.times_ms for part in self.parts])
        values = self.parts[0].values
        if len(self.parts) > 1:
            values = np.concatenate([part.values for part in self.parts])
        if not ascend:
            order = self._order(times)
            times, values = times[order], values[order]
        return times, values

    def to_series_data(self) -> SeriesData:
        """The samples as they are returned."""
        # What is shared with other readers cannot be written; the answer is the caller's own.
        times, values = self.in_order()
        times = times if times.flags.writeable else times.copy()
        values = values if values.flags.writeable else values.copy()
        stored = self.stored
        return SeriesData(self.target, stored.metric_type, stored.series, dict(stored.tags), times, values)

    def _order(self, times: NDArray[np.int64]) -> NDArray[np.intp]:
        origins = np.concatenate([np.full(len(part.times_ms), part.origin, dtype=np.int64) for part in self.parts])
        sequences = np.concatenate(
            [part.sequences() if callable(part.sequences) else part.sequences for part in self.parts]
        )
        positions = np.concatenate(
            [np.broadcast_to(np.asarray(part.position, dtype=np.int64), len(part.times_ms)) for part in self.parts]
        )
        return np.lexsort((positions, sequences, origins, times))


class Gathering:
    """Collects parts by target and series."""

    def __init__(self) -> None:
        self._found: dict[SeriesKey, Gathered] = {}

    def add(self, target: str, stored: StoredSeries, part: Part) -> None:
        """Add samples of a series."""
        if len(part.times_ms):
            self.of(target, stored).parts.append(part)

    def of(self, target: str, stored: StoredSeries) -> Gathered:
        """What was found of a series."""
        key = series_key(target, stored)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = Gathered(target, stored)
        return found

    def __iter__(self) -> Iterator[Gathered]:
        """Every series, in the same order every time."""
        keys = self._found if len(self._found) < 2 else sorted(self._found, key=repr)
        return (self._found[key] for key in keys if self._found[key].parts)


def series_key(target: str, stored: StoredSeries) -> SeriesKey:
    """The same for the same series of the same target."""
    return target, stored.metric_type, stored.series.name, stored.label_key
